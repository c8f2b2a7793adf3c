package replication

import "syscall"

// These are the TCP window and the receive buffer of a connection within the machine.
//
// If the window is full, the sender only appends to its own queue, which costs it a third of what sending costs. The window that
// the kernel chooses by itself has some megabytes, and is hardly ever full.
//
// The buffer stays much larger than the window. The overhead of small segments would use up a small buffer; the kernel would then
// drop segments that the window has room for, and the sender would send them again only after seconds, and each time after twice
// as many.
const (
	windowBytes = 32 << 10
	windowRoom  = 256 << 10 // net.core.rmem_max may allow less
)

// clampWindow makes the window small. If it cannot be set, the stream is slower, and nothing else changes.
func clampWindow(c syscall.RawConn) {
	_ = c.Control(func(fd uintptr) {
		if syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, windowRoom) != nil {
			return // without SO_RCVBUF the kernel would go on to raise the window
		}
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_WINDOW_CLAMP, windowBytes)
	})
}
