//go:build !linux

package replication

import (
	"syscall"
	"time"
)

// setUserTimeout does nothing: only Linux can bound it. Keepalives find out where nothing is being sent.
func setUserTimeout(syscall.RawConn, time.Duration) {}
