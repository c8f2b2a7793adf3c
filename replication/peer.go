package replication

import (
	"cmp"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// A host may vanish without a word: it loses its power, or a firewall forgets the connection. TCP by itself waits for such a host
// for a quarter of an hour if something was sent, and for two hours if not, as in the middle of a statement.
const (
	deadAfter        = senderTimeout // a host that has not answered for so long counts as vanished
	probeEvery       = deadAfter / 3 // an idle connection is probed after so long, and again after so long
	unansweredProbes = 2
)

// DetectDeadPeer makes both ends of an SQL connection find out within 15 s that the other end has vanished. Every connection of
// ours is set up so. It replaces the dialer of the configuration, so whoever sets a dialer too has to do so afterwards.
func DetectDeadPeer(cfg *pgconn.Config) {
	cfg.DialFunc = newDialer().DialContext
	for name, value := range map[string]string{
		"tcp_keepalives_idle":     fmt.Sprint(int(probeEvery.Seconds())),
		"tcp_keepalives_interval": fmt.Sprint(int(probeEvery.Seconds())),
		"tcp_keepalives_count":    fmt.Sprint(unansweredProbes),
		"tcp_user_timeout":        fmt.Sprint(deadAfter.Milliseconds()),
	} {
		cfg.RuntimeParams[name] = cmp.Or(cfg.RuntimeParams[name], value) // what the DSN sets counts
	}
}

// newDialer returns a dialer whose connections find out that the other end has vanished.
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
