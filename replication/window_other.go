//go:build !linux

package replication

import "syscall"

// clampWindow does nothing: only Linux can bound the window apart from the buffer.
func clampWindow(syscall.RawConn) {}
