package eventbus

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// session is one connection, from its handshake to its loss.
type session struct {
	maxPayload int64
	lost       chan struct{} // closed when it is
	err        error         // why; to be read when lost is closed

	mu      sync.Mutex
	resting map[string]time.Time // subjects whose streams did not answer, until when they are not tried
}

// isResting tells whether subject is not to be tried yet.
func (s *session) isResting(subject string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.resting[subject]
	if ok && !time.Now().Before(until) {
		delete(s.resting, subject)
		return false
	}
	return ok
}

func (s *session) letRest(subject string, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resting == nil {
		s.resting = make(map[string]time.Time)
	}
	s.resting[subject] = time.Now().Add(d)
}

// wake is called for every acknowledgement.
func (s *session) wake(subject string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.resting, subject)
}

// frame is a message on its way to the client. It refers to nothing of the batch.
type frame struct {
	msg   *nats.Msg
	to    *delivery
	index int32
}

// answer is what becomes of a message: what the server said, or why it was not sent.
type answer struct {
	index int32
	msg   *nats.Msg
	err   error
}

var errClosedConnection = errors.New("the connection is closed")

// run owns the client: it makes it, publishes, and makes another one when the first has given up (the client takes some
// errors of the server as final).
func (s *Sink) run() {
	defer close(s.done)
	for {
		closed := make(chan struct{})
		client, err := nats.Connect(s.url, append(s.handlers(closed), s.options...)...)
		if err == nil {
			err = s.publish(client, closed)
			client.Close()
			<-closed // no handler is called any more
		}
		s.failed(err)
		select {
		case <-s.stop:
			return
		case <-time.After(maxReconnect):
		}
	}
}

// handlers are called by one goroutine of the client, in the order of what they tell of, and never with its lock held.
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

// publish hands frames to the client until that is closed, or the sink is to be.
func (s *Sink) publish(client *nats.Conn, closed chan struct{}) error {
	answers, err := client.Subscribe(s.inbox+"*.*", s.answered)
	if err != nil {
		return err
	}
	// There are no more answers than messages on the wire, and those are bounded.
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
	next := &session{maxPayload: client.MaxPayload(), lost: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(errors.New("another connection was made")) // never so, but its Delivers would wait for ever
	s.session, s.lastErr = next, nil
	s.attempted()
}

// disconnected: nothing that is on the wire is answered any more.
func (s *Sink) disconnected(err error) {
	if err == nil {
		err = errClosedConnection
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(err)
}

// failed is an attempt to connect.
func (s *Sink) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(err)
	if err != nil {
		s.lastErr = err
	}
	s.attempted()
}

// end is called with the lock held.
func (s *Sink) end(err error) {
	if s.session == nil {
		return
	}
	s.session.err, s.lastErr = err, err
	close(s.session.lost)
	s.session = nil
}

// attempted is called with the lock held.
func (s *Sink) attempted() {
	if !s.wasTried {
		s.wasTried = true
		close(s.tried)
	}
}

// asyncError takes note of rights that are missing: a message that may not be published gets no answer.
func (s *Sink) asyncError(client *nats.Conn, sub *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	what, subject, _ := strings.Cut(err.Error(), ` to "`)
	subject, _, _ = strings.Cut(subject, `"`)
	if sub != nil || strings.HasSuffix(what, "Subscription") {
		s.disconnected(errors.New("no right to subscribe to acknowledgements: allow " + s.inbox + ">, or set an inbox prefix"))
		time.AfterFunc(s.rest, func() { _ = client.ForceReconnect() }) // it fails where the client is closed
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.deliveries {
		d.deny(subject)
	}
}

// answered finds the message that an answer is for: the end of its subject is the number of a Deliver and the index of
// a message of its batch. It is called by one goroutine.
func (s *Sink) answered(m *nats.Msg) {
	number, index, _ := strings.Cut(m.Subject[len(s.inbox):], ".")
	n, err := strconv.ParseUint(number, 36, 64)
	i, err2 := strconv.ParseInt(index, 36, 32)
	if err != nil || err2 != nil {
		return // somebody else's
	}
	s.mu.Lock()
	d := s.deliveries[n]
	s.mu.Unlock()
	if d != nil && int(i) < len(d.batch) {
		d.answer(answer{index: int32(i), msg: m})
	}
}
