//go:build !linux

package replication

import "syscall"

// clampWindow does nothing, because only Linux can bound the window without the buffer.
func clampWindow(syscall.RawConn) {}
