package servers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

var loopback = net.IPv4(127, 0, 0, 1)

// local is the address of a port of 127.0.0.1.
func local(port int) string { return net.JoinHostPort(loopback.String(), strconv.Itoa(port)) }

// freePort picks a port of 127.0.0.1 that nothing listens on. It lies below the ports from which the kernel serves
// outgoing connections: one of those could be taken while a server is stopped, and a client that redials a stopped
// server can even connect to itself.
func freePort() (int, error) {
	var errs []error
	for range 100 {
		port := 20000 + rand.IntN(12000)
		listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: loopback, Port: port})
		if err == nil {
			return port, listener.Close()
		}
		errs = append(errs, err)
	}
	return 0, fmt.Errorf("no free port: %w", errors.Join(errs...))
}
