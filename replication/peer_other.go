//go:build !linux

package replication

import (
	"syscall"
	"time"
)

// setUserTimeout does nothing, because only Linux has such a bound. On an idle connection keepalives find out.
func setUserTimeout(syscall.RawConn, time.Duration) {}
