package eventbus

import (
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// natsConnection is one connection, from its handshake until it is lost.
type natsConnection struct {
	maxPayload int64
	lost       chan struct{} // closed when the connection is lost
	err        error         // why it was lost; may be read after lost is closed

	away      sinks.Away[string] // subjects. A new connection forgets them: they may be there after a restart.
	heard     atomic.Int64       // how many messages a stream has answered
	mayNotAsk atomic.Bool        // the user has no right to infoSubject
}

// frame is a message on its way to the client. It does not refer to memory of the batch.
type frame struct {
	msg   *nats.Msg
	to    *delivery
	index int32
}

// answer is the answer of the server to a message, or the reason why the message was not sent.
type answer struct {
	index int32
	msg   *nats.Msg
	err   error
}

var errClosedConnection = errors.New("the connection is closed")

// run owns the client: it makes the client, publishes, and makes a new client when this one has given up. (The client
// gives up at some errors of the server.)
func (s *Sink) run() {
	defer close(s.done)
	for {
		closed := make(chan struct{})
		client, err := nats.Connect(s.url, append(s.handlers(closed), s.options...)...)
		if err == nil {
			err = s.publish(client, closed)
			client.Close()
			<-closed // after this the client calls no handler any more
		}
		s.failed(err)
		select {
		case <-s.stop:
			return
		case <-time.After(maxReconnect):
		}
	}
}

// handlers returns the handlers of the client's events. One goroutine of the client calls them, in the order of the
// events, and without holding the lock of the client.
func (s *Sink) handlers(closed chan struct{}) []nats.Option {
	return []nats.Option{
		nats.ConnectHandler(s.connected),
		nats.ReconnectHandler(s.connected),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { s.disconnected(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { s.failed(err) }),
		nats.ErrorHandler(s.asyncError),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }),
	}
}

// publish passes frames to the client until the client is closed, or until the sink is to be closed.
func (s *Sink) publish(client *nats.Conn, closed chan struct{}) error {
	answers, err := client.Subscribe(s.inbox+"*.*", s.answered)
	if err != nil {
		return err
	}
	// The client need not limit the answers: there are at most as many as messages on the wire, and these are limited.
	if err := answers.SetPendingLimits(-1, -1); err != nil {
		return err
	}
	for {
		select {
		case f := <-s.queue:
			if f.to.over.Load() {
				continue
			}
			if err := client.PublishMsg(f.msg); err != nil {
				f.to.answer(answer{index: f.index, err: err})
			}
		case <-closed:
			return errors.Join(errClosedConnection, client.LastError())
		case <-s.stop:
			return errClosedConnection
		}
	}
}

func (s *Sink) connected(client *nats.Conn) {
	next := &natsConnection{maxPayload: client.MaxPayload(), lost: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(errors.New("another connection was made")) // should not happen; without this, the Delivers of the old session would wait for ever
	s.session, s.lastErr = next, nil
	s.attempted()
}

// disconnected ends the session: messages that are on the wire will not be answered any more.
func (s *Sink) disconnected(err error) {
	if err == nil {
		err = errClosedConnection
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(err)
}

// failed notes that an attempt to connect has failed.
func (s *Sink) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(err)
	if err != nil {
		s.lastErr = err
	}
	s.attempted()
}

// end ends the session. The caller holds the lock.
func (s *Sink) end(err error) {
	if s.session == nil {
		return
	}
	s.session.err, s.lastErr = err, err
	close(s.session.lost)
	s.session = nil
}

// attempted notes that the first attempt to connect has ended. The caller holds the lock.
func (s *Sink) attempted() {
	if !s.wasTried {
		s.wasTried = true
		close(s.tried)
	}
}

// asyncError notes that a right is missing. A message that may not be published gets no other answer.
func (s *Sink) asyncError(client *nats.Conn, sub *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	what, rest, _ := strings.Cut(err.Error(), ` to "`)
	quoted, _ := strconv.QuotedPrefix(`"` + rest)
	subject, _ := strconv.Unquote(quoted)
	if sub != nil || strings.HasSuffix(what, "Subscription") {
		s.disconnected(errNoInbox(s.inbox))
		time.AfterFunc(s.pause, func() { _ = client.ForceReconnect() }) // fails only if the client is closed
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.deliveries {
		d.deny(subject)
	}
}

func errNoInbox(inbox string) error {
	return errors.New("no right to subscribe to acknowledgements: allow " + inbox + ">, or set an inbox prefix")
}

// answered passes an answer on to the delivery that waits for it. The subject of the answer ends with the number of the
// Deliver and the index of the message in its batch. Only one goroutine calls it.
func (s *Sink) answered(m *nats.Msg) {
	number, index, _ := strings.Cut(m.Subject[len(s.inbox):], ".")
	n, err := strconv.ParseUint(number, 36, 64)
	i, err2 := strconv.ParseUint(index, 36, 31)
	if err != nil || err2 != nil {
		return // the answer is not for this sink
	}
	s.mu.Lock()
	d := s.deliveries[n]
	s.mu.Unlock()
	if d != nil && int(i) <= d.size {
		d.answer(answer{index: int32(i), msg: m})
	}
}
