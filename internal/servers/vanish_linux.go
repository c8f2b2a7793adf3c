package servers

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Vanish makes the server's host vanish for the clients of all open connections: nothing comes, and what they send is not even
// acknowledged. Stalled connections are: their host is there. It is for good; Close ends them with a reset.
func (p *Proxy) Vanish() error {
	p.Stall(ToClient)
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []error
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}} // no byte of any segment is let in
	program := &unix.SockFprog{Len: uint16(len(drop)), Filter: &drop[0]}
	for l := range p.links {
		raw, err := l.client.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) {
				all = append(all, unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program))
			})
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}
