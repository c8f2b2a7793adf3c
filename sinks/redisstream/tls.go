package redisstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// errNoTLS is the error for a server that accepts the connection, but does not answer TLS. A Redis without TLS takes
// the handshake for a command, and waits for its end.
var errNoTLS = errors.New("the server takes the connection and does not answer TLS; if this port is without TLS, write redis:// and no tls, " +
	"or name the port that has it (tls-port)")

// dialTLS connects in the same way as go-redis. Its error distinguishes a server that is away from one that does not speak TLS.
func dialTLS(config *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 5 * time.Minute}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := config
		if c.ServerName == "" {
			c = config.Clone()
			if c.ServerName, _, err = net.SplitHostPort(addr); err != nil {
				c.ServerName = addr
			}
		}
		// This ends before a Deliver stops waiting for the dial, so that Deliver gets this error.
		handshake, cancel := context.WithTimeout(ctx, dialTimeout*4/5)
		defer cancel()
		secured := tls.Client(conn, c)
		if err := secured.HandshakeContext(handshake); err != nil {
			conn.Close()
			var noTLS tls.RecordHeaderError
			if errors.As(err, &noTLS) || handshake.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, fmt.Errorf("TLS: %w: %w", errNoTLS, err)
			}
			return nil, fmt.Errorf("TLS: %w", err)
		}
		return secured, nil
	}
}
