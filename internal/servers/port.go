package servers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// freePort picks a port of 127.0.0.1 that nothing listens on. It lies below the ports from which the kernel serves
// outgoing connections: one of those could be taken while a server is stopped, and a client that redials a stopped
// server can even connect to itself.
func freePort() (int, error) {
	var errs []error
	for range 100 {
		port := 20000 + rand.IntN(12000)
		listener, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)) //nolint:noctx // binds at once
		if err == nil {
			return port, listener.Close()
		}
		errs = append(errs, err)
	}
	return 0, fmt.Errorf("no free port: %w", errors.Join(errs...))
}
