package servers

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

var loopback = net.IPv4(127, 0, 0, 1)

// local is the address of a port of 127.0.0.1.
func local(port int) string { return net.JoinHostPort(loopback.String(), strconv.Itoa(port)) }

// picked are the ports that this process has picked: no other that starts servers picks them, even while the server
// that one is meant for is not up yet, or stopped for a while. A lock on one byte of a common file says so to the others.
var picked struct {
	sync.Mutex
	file  *os.File
	ports map[int]bool // such locks do not exclude their owner
}

// FreePort picks a port of 127.0.0.1 that nothing listens on. It lies below the ports from which the kernel serves
// outgoing connections: one of those could be taken while a server is stopped, and a client that redials a stopped
// server can even connect to itself.
func FreePort() (int, error) {
	picked.Lock()
	defer picked.Unlock()
	if picked.file == nil {
		root, err := cacheRoot()
		if err != nil {
			return 0, err
		}
		if err := os.MkdirAll(root, 0o755); err != nil {
			return 0, err
		}
		if picked.file, err = os.OpenFile(filepath.Join(root, "ports.lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			return 0, err
		}
		picked.ports = map[int]bool{}
	}
	var errs []error
	for range 100 {
		port := 20000 + rand.IntN(12000)
		if picked.ports[port] {
			continue
		}
		lock := syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart, Start: int64(port), Len: 1}
		if err := syscall.FcntlFlock(picked.file.Fd(), syscall.F_SETLK, &lock); err != nil {
			errs = append(errs, err)
			continue
		}
		picked.ports[port] = true
		listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: loopback, Port: port})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		return port, listener.Close()
	}
	return 0, fmt.Errorf("no free port: %w", errors.Join(errs...))
}
