package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// alertTimeout is how long Check waits for a server to refuse the client's certificate, or that there is none. With TLS 1.3 it does
// so only after the handshake.
const alertTimeout = 500 * time.Millisecond

// Check implements sinks.Checker. It connects to the receiver, with TLS if that is in the URL, and sends no request: even HEAD or
// OPTIONS could have an effect. So it does not find out whether a URL exists, nor whether the receiver takes our signatures. All URLs
// of a sink have the same host, so one connection is enough. The guard against internal addresses applies to it.
func (s *Sink) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	if err := s.connect(ctx); err != nil {
		if ctx.Err() != nil {
			err = errNoAnswer(ctx)
		}
		return nil, fmt.Errorf("%w: %w", sinks.ErrUnavailable, err)
	}
	found := make([]sinks.TopicCheck, len(topics))
	for i, topic := range topics {
		kind := "topic" // which goes to the sink's own URL
		if isURL(topic) {
			kind = "URL"
		}
		_, err := s.target(topic)
		found[i] = sinks.TopicCheck{Kind: kind, Topic: topic, Err: err}
	}
	return found, nil
}

// connect connects to the host in the same way as the transport, and closes the connection.
func (s *Sink) connect(ctx context.Context) error {
	dial := s.transport.DialContext
	if s.url.Scheme == "https" {
		dial = s.transport.DialTLSContext
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(s.url.Hostname(), portOf(s.url)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if secured, ok := conn.(*tls.Conn); ok && secured.ConnectionState().Version >= tls.VersionTLS13 {
		return awaitAlert(secured)
	}
	return nil
}

// awaitAlert returns the alert of a server that refuses the client after the handshake. A server that is content waits for a request.
func awaitAlert(conn *tls.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(alertTimeout)); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return fmt.Errorf("TLS: %w", op)
	}
	return nil
}
