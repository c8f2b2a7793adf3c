package replication

import (
	"cmp"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// A host may vanish without a word: its power is gone, or a firewall forgets the connection. TCP itself would wait for it a
// quarter of an hour, in the middle of a statement two hours.
const (
	deadAfter        = senderTimeout // so long it may keep silent,
	probeEvery       = deadAfter / 3 // and is asked after, where nobody has said anything for so long
	unansweredProbes = 2
)

// DetectDeadPeer makes both ends of an SQL connection find out within 15 s that the other one has vanished. Every connection of ours has
// it. It replaces the dialer, so it comes before whatever does so with another.
func DetectDeadPeer(cfg *pgconn.Config) {
	cfg.DialFunc = newDialer().DialContext
	for name, value := range map[string]string{
		"tcp_keepalives_idle":     fmt.Sprint(int(probeEvery.Seconds())),
		"tcp_keepalives_interval": fmt.Sprint(int(probeEvery.Seconds())),
		"tcp_keepalives_count":    fmt.Sprint(unansweredProbes),
		"tcp_user_timeout":        fmt.Sprint(deadAfter.Milliseconds()),
	} {
		cfg.RuntimeParams[name] = cmp.Or(cfg.RuntimeParams[name], value) // the DSN's own
	}
}

// newDialer makes our end find out.
func newDialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeEvery, Interval: probeEvery, Count: unansweredProbes},
		Control: func(network, _ string, c syscall.RawConn) error {
			if strings.HasPrefix(network, "tcp") {
				setUserTimeout(c, deadAfter)
			}
			return nil
		},
	}
}
