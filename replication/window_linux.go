package replication

import "syscall"

// The window of a connection within the machine. A sender whose window is full only appends to its own queue, which
// costs it a third of sending; the kernel's own choice of some megabytes is hardly ever full. The buffer stays much
// larger than the window: a small one is used up by the overhead of small segments, the kernel drops what it had room
// for, and the sender comes back after seconds, each time twice as many.
const (
	windowBytes = 32 << 10
	windowRoom  = 256 << 10 // net.core.rmem_max may allow less
)

// clampWindow makes the window small. Where it cannot be set all is as before, only slower.
func clampWindow(c syscall.RawConn) {
	_ = c.Control(func(fd uintptr) {
		if syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, windowRoom) != nil {
			return // the kernel would go on to raise the window
		}
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_WINDOW_CLAMP, windowBytes)
	})
}
