package eventbus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// expectTopicAway checks that message i of the batch failed because its subject is away, and for the reason.
func expectTopicAway(t *testing.T, errs []error, i int, reason string) {
	t.Helper()
	if errs == nil || !errors.Is(errs[i], sinks.ErrTopicUnavailable) || errors.Is(errs[i], sinks.ErrUnavailable) ||
		!strings.Contains(errs[i].Error(), reason) {
		t.Fatalf("message %d: want ErrTopicUnavailable, %q; got %v", i, reason, errs)
	}
}

// expectPutOff checks that message i was not sent, because its subject was found away.
func expectPutOff(t *testing.T, errs []error, i int) {
	t.Helper()
	if errs == nil || !errors.Is(errs[i], sinks.ErrNotAttempted) || sinks.RetryAfter(errs[i]) <= 0 || sinks.RetryAfter(errs[i]) > sinks.LongestAway {
		t.Fatalf("message %d: want ErrNotAttempted with a time, got %v", i, errs)
	}
}

// update changes the configuration of the stream.
func (s *stream) update(change func(c *jetstream.StreamConfig)) {
	s.t.Helper()
	client := s.client()
	stream, err := client.Stream(s.t.Context(), s.name)
	if err != nil {
		s.t.Fatal(err)
	}
	c := stream.CachedInfo().Config
	change(&c)
	if _, err := client.UpdateStream(s.t.Context(), c); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stream) addSubject(subject string) {
	s.t.Helper()
	s.update(func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, subject) })
}

// respond makes something that is no stream answer to a subject with text, or say nothing if text is empty. It returns what
// arrives there.
func respond(t testing.TB, n *servers.NATS, subject, text string) *nats.Subscription {
	t.Helper()
	nc := connect(t, n.URL())
	var sub *nats.Subscription
	var err error
	if text == "" {
		sub, err = nc.SubscribeSync(subject)
	} else {
		sub, err = nc.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond([]byte(text)) })
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

// TestSubjectsThatAreAway: other subjects go on, the one that is away is left alone for a while, and its messages arrive when it
// is there.
func TestSubjectsThatAreAway(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	for name, c := range map[string]struct {
		reason string
		// away returns a subject that is away, and what brings it back.
		away func(t *testing.T, good *stream) (subject string, back func())
	}{
		"no stream": {"no stream takes it", func(_ *testing.T, good *stream) (string, func()) {
			subject := "missing." + good.subject
			return subject, func() { good.addSubject(subject) }
		}},
		"another stream": {"than the configured one", func(t *testing.T, good *stream) (string, func()) {
			other := newStream(t, n.URL(), jetstream.StreamConfig{})
			return other.subject, func() {
				other.update(func(c *jetstream.StreamConfig) { c.Subjects = []string{"moved." + other.subject} })
				good.addSubject(other.subject)
			}
		}},
		"somebody else answers": {"something else than a stream", func(t *testing.T, good *stream) (string, func()) {
			subject := "echo." + good.subject
			echo := respond(t, n, subject, "hello")
			return subject, func() {
				if err := echo.Unsubscribe(); err != nil {
					t.Error(err)
				}
				good.addSubject(subject)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := newStream(t, n.URL(), jetstream.StreamConfig{})
			subject, back := c.away(t, good)
			s := newSink(t, Config{URL: n.URL(), Stream: good.name, Topics: sinks.SeveralTopics})
			bad := []sinks.Message{message(subject, "a", "1", 10), message(subject, "a", "2", 10)}
			errs := s.Deliver(short(t), bad) // also where no other subject is asked
			expectTopicAway(t, errs, 0, c.reason)
			if !errors.Is(errs[1], sinks.ErrNotAttempted) || sinks.RetryAfter(errs[1]) != 0 {
				t.Errorf("a later message of its aggregate: %v", errs[1])
			}
			mixed := append([]sinks.Message{message(good.subject, "b", "3", 10), message(subject, "c", "4", 10)}, bad...)
			errs = s.Deliver(short(t), mixed)
			expectPutOff(t, errs, 1)
			expectPutOff(t, errs, 2)
			if errs[0] != nil {
				t.Errorf("another subject: %v", errs[0])
			}
			back()
			eventually(t, "it is back", func() error { return errors.Join(s.Deliver(short(t), mixed)...) })
			if got := len(good.ids()); got != 4 {
				t.Errorf("%d of 4 messages arrived", got)
			}
		})
	}
}

// TestStreamsThatTakeNothing: a full or sealed stream, beside one that takes messages.
func TestStreamsThatTakeNothing(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	good := newStream(t, n.URL(), jetstream.StreamConfig{})
	full := newStream(t, n.URL(), jetstream.StreamConfig{MaxMsgs: 1, Discard: jetstream.DiscardNew})
	sealed := newStream(t, n.URL(), jetstream.StreamConfig{})
	sealed.update(func(c *jetstream.StreamConfig) { c.Sealed = true })
	for subject, reason := range map[string]string{full.subject: "raise its limits", sealed.subject: "another stream"} {
		s := newSink(t, Config{URL: n.URL(), Topics: sinks.SeveralTopics})
		if subject == full.subject {
			if errs := s.Deliver(short(t), []sinks.Message{message(subject, "x", "first", 10)}); errs != nil {
				t.Fatal(errs)
			}
		}
		batch := []sinks.Message{message(subject, "a", "1", 10), message(good.subject, "b", "2", 10)}
		errs := s.Deliver(short(t), batch)
		expectTopicAway(t, errs, 0, reason)
		if errs[1] != nil {
			t.Error(errs[1])
		}
		expectPutOff(t, s.Deliver(short(t), batch), 0)
	}
}

// TestDeniedSubjects: many in one call, whatever their names are; a call ends soon, and other subjects go on.
func TestDeniedSubjects(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{Config: `authorization { users = [
		{user: admin, password: a}
		{user: narrow, password: a, permissions: {publish: "outbox.event.*", subscribe: "_INBOX.>"}}
	]}`})
	stream := newStream(t, "nats://admin:a@"+n.Addr(), jetstream.StreamConfig{})
	s := newSink(t, Config{URL: "nats://narrow:a@" + n.Addr(), Topics: sinks.SeveralTopics})
	batch := []sinks.Message{
		message(stream.subject, "good", "good", 10),
		message(`denied."quoted"\too`, "quoted", "quoted", 10),
		message("denied.schön.\u200b.\xff", "unprintable", "unprintable", 10),
	}
	for i := range 300 {
		batch = append(batch, message(fmt.Sprint("denied.", i), fmt.Sprint("a-", i), fmt.Sprint(i), 10))
	}
	for round := range 2 {
		ctx := short(t)
		errs := s.Deliver(ctx, batch)
		if ctx.Err() != nil {
			t.Fatal("it has lasted as long as its deadline")
		}
		if errs == nil || errs[0] != nil {
			t.Fatalf("got %v", errs)
		}
		for i := range batch[1:] {
			if round == 0 {
				expectTopicAway(t, errs, i+1, "no right to publish")
			} else {
				expectPutOff(t, errs, i+1)
			}
		}
	}
}

// TestAccountWithoutJetStream is a destination that is away as a whole, whatever the subjects. If the user may not ask for it,
// that does not become known, and the call does not wait for it.
func TestAccountWithoutJetStream(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{Config: `accounts {
		with { jetstream: enabled, users: [
			{user: admin, password: a}
			{user: narrow, password: a, permissions: {publish: "outbox.>", subscribe: "_INBOX.>"}}
		]}
		without { users: [{user: other, password: a}] }
	}`})
	url := func(user string) string { return "nats://" + user + ":a@" + n.Addr() }
	batch := []sinks.Message{message("outbox.one", "a", "1", 10), message("outbox.two", "b", "2", 10)}
	s := newSink(t, Config{URL: url("other"), Topics: sinks.SeveralTopics})
	for range 3 {
		errs := s.Deliver(short(t), batch)
		expectAll(t, errs, len(batch), sinks.ErrUnavailable)
		if !strings.Contains(errs[0].Error(), "JetStream") {
			t.Errorf("want the reason, got %v", errs[0])
		}
	}
	for _, user := range []string{"admin", "narrow"} {
		s := newSink(t, Config{URL: url(user), Topics: sinks.SeveralTopics})
		s.patience = time.Hour
		ctx := short(t)
		errs := s.Deliver(ctx, batch)
		if ctx.Err() != nil {
			t.Fatalf("%s: it has lasted as long as its deadline", user)
		}
		expectTopicAway(t, errs, 0, "no stream takes it")
		expectTopicAway(t, errs, 1, "no stream takes it")
		if denied := s.session.mayNotAsk.Load(); denied != (user == "narrow") {
			t.Errorf("%s may ask: %t", user, !denied)
		}
	}
}

// TestSubjectThatDoesNotAnswer is away if other subjects answer meanwhile; otherwise it is the destination that is.
func TestSubjectThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	silent := respond(t, n, "silent.>", "")
	expectSent := func(want int) {
		t.Helper()
		if got, _, err := silent.Pending(); err != nil || got != want {
			t.Errorf("%d messages were sent to it, want %d; %v", got, want, err)
		}
	}
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	batch := []sinks.Message{
		message("silent.a", "a", "1", 10), message("silent.a", "a", "2", 10), message("silent.a", "c", "3", 10),
		message(stream.subject, "b", "4", 10),
	}
	for _, topics := range []sinks.Topics{sinks.OneTopic, sinks.SeveralTopics} {
		s := newSink(t, Config{URL: n.URL(), Topics: topics})
		if errs := s.Deliver(short(t), batch[3:]); errs != nil { // connects
			t.Fatal(errs)
		}
		for range 2 {
			errs := s.Deliver(soon(), batch[:3])
			expectAll(t, []error{errs[0], errs[2]}, 2, sinks.ErrUnavailable)
			if !errors.Is(errs[1], sinks.ErrNotAttempted) {
				t.Error(errs[1])
			}
		}
	}
	expectSent(8)

	s := newSink(t, Config{URL: n.URL(), Topics: sinks.SeveralTopics})
	errs := s.Deliver(soon(), batch)
	expectTopicAway(t, errs, 0, "no answer")
	expectTopicAway(t, errs, 2, "no answer")
	if !errors.Is(errs[1], sinks.ErrNotAttempted) || errs[3] != nil {
		t.Errorf("got %v", errs)
	}
	ctx := short(t)
	errs = s.Deliver(ctx, batch)
	expectPutOff(t, errs, 0)
	expectPutOff(t, errs, 2)
	if errs[3] != nil || ctx.Err() != nil {
		t.Errorf("another subject: %v", errs[3])
	}
	expectSent(10)

	// Another lane gets answers meanwhile, from another subject.
	other := []sinks.Message{message("silent.b", "d", "5", 10)}
	result := make(chan []error)
	go func() { result <- s.Deliver(soon(), other) }()
	eventually(t, "it is sent", func() error {
		if got, _, err := silent.Pending(); err != nil || got != 11 {
			return fmt.Errorf("%d were sent; %w", got, err)
		}
		return nil
	})
	if errs := s.Deliver(short(t), batch[3:]); errs != nil {
		t.Error(errs)
	}
	expectTopicAway(t, <-result, 0, "no answer")
	expectPutOff(t, s.Deliver(short(t), other), 0)

	eventually(t, "it is asked again", func() error {
		if errs := s.Deliver(soon(), batch); errors.Is(errs[0], sinks.ErrNotAttempted) {
			return errs[0]
		}
		return nil
	})
}

// TestSilentSubjectsEndSoon: a call does not last until its deadline because of them, if JetStream answers.
func TestSilentSubjectsEndSoon(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{Config: `authorization { users = [
		{user: admin, password: a}
		{user: narrow, password: a, permissions: {publish: [">"], subscribe: "_INBOX.>"}}
		{user: mute, password: a, permissions: {publish: ["outbox.>", "silent.>"], subscribe: "_INBOX.>"}}
	]}`})
	url := func(user, addr string) string { return "nats://" + user + ":a@" + addr }
	stream := newStream(t, url("admin", n.Addr()), jetstream.StreamConfig{})
	nc := connect(t, url("admin", n.Addr()))
	if _, err := nc.SubscribeSync("silent.>"); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	silent := []sinks.Message{
		message("silent.a", "a", "1", 10), message("silent.a", "a", "2", 10), message("silent.b", "b", "3", 600_000),
		message("silent.c", "c", "4", 600_000), // there is room on the wire when the one before it is given up
	}
	newSink := func(c Config) *Sink {
		s := newSink(t, c)
		s.patience = 400 * time.Millisecond
		return s
	}
	s := newSink(Config{URL: url("narrow", n.Addr()), Topics: sinks.SeveralTopics})
	ctx := short(t)
	errs := s.Deliver(ctx, silent)
	if ctx.Err() != nil {
		t.Fatal("it has lasted as long as its deadline")
	}
	for _, i := range []int{0, 2, 3} {
		expectTopicAway(t, errs, i, "no answer")
	}
	if !errors.Is(errs[1], sinks.ErrNotAttempted) {
		t.Error(errs[1])
	}
	good := message(stream.subject, "z", "9", 10)
	errs = s.Deliver(short(t), append(silent[:3:3], good))
	expectPutOff(t, errs, 0)
	if errs[3] != nil {
		t.Errorf("another subject: %v", errs[3])
	}

	// Where JetStream does not answer, or may not be asked, the deadline decides, and the destination is away.
	proxy := newProxy(t, n)
	hung := newSink(Config{URL: url("narrow", proxy.Addr()), Topics: sinks.SeveralTopics})
	mute := newSink(Config{URL: url("mute", n.Addr()), Topics: sinks.SeveralTopics})
	for _, s := range []*Sink{hung, mute} {
		if errs := s.Deliver(short(t), []sinks.Message{good}); errs != nil {
			t.Fatal(errs)
		}
	}
	hang(proxy)()
	for _, s := range []*Sink{hung, mute} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		expectAll(t, s.Deliver(ctx, silent[2:]), 2, sinks.ErrUnavailable)
		if ctx.Err() == nil {
			t.Error("it has not waited")
		}
	}
	if !mute.session.mayNotAsk.Load() {
		t.Error("JetStream was not asked")
	}
	// If streams answer other lanes meanwhile, that is as good.
	result := make(chan []error)
	go func() { result <- mute.Deliver(short(t), silent[:1]) }()
	for n := 0; ; n++ {
		select {
		case errs := <-result:
			expectTopicAway(t, errs, 0, "no answer")
			return
		case <-time.After(20 * time.Millisecond):
			if errs := mute.Deliver(short(t), []sinks.Message{message(stream.subject, "z", fmt.Sprint("z-", n), 10)}); errs != nil {
				t.Error(errs)
			}
		}
	}
}

// TestNoTimeToSend: what waits for room on the wire behind messages without an answer was not attempted.
func TestNoTimeToSend(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	respond(t, n, "silent.>", "")
	batch := []sinks.Message{
		message(stream.subject, "a", "1", 10), message("silent.a", "b", "2", 500_000), message("silent.a", "c", "3", 500_000),
		message(stream.subject, "d", "4", 500_000), message(stream.subject, "d", "5", 10),
	}
	for topics, class := range map[sinks.Topics]error{sinks.OneTopic: sinks.ErrUnavailable, sinks.SeveralTopics: sinks.ErrTopicUnavailable} {
		s := newSink(t, Config{URL: n.URL(), Topics: topics})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		errs := s.Deliver(ctx, batch)
		if len(errs) != len(batch) || errs[0] != nil {
			t.Fatalf("got %v", errs)
		}
		expectAll(t, errs[1:3], 2, class)
		expectAll(t, errs[3:], 2, sinks.ErrNotAttempted)
	}
}

// TestAnswersForNobody: whoever may publish to the sink's inbox cannot stop it.
func TestAnswersForNobody(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	s := newSink(t, Config{URL: n.URL()})
	nc := connect(t, n.URL())
	if _, err := nc.Subscribe("slow.>", func(m *nats.Msg) {
		for _, index := range []string{"-1", "1", "2", "3", "zzzzzzzz", ""} {
			_ = nc.Publish(strings.TrimSuffix(m.Reply, "0")+index, []byte(`{"stream":"S","seq":1}`))
		}
		_ = nc.Publish(m.Reply, []byte(`{"stream":"S","seq":1}`))
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if errs := s.Deliver(short(t), []sinks.Message{message("slow.a", "a", "1", 10)}); errs != nil {
		t.Error(errs)
	}
	if errs := s.Deliver(short(t), messages(stream.subject, 3, 3)); errs != nil {
		t.Error(errs)
	}
}
