package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// world is a faked cluster with one topic, and a sink.
type world struct {
	*testing.T
	fake    *kfake.Cluster
	brokers []string
	topic   string
	sink    *Sink
	network *network
	topics  []string // those of the random test
}

func newWorld(t *testing.T, partitions int32, opts ...kfake.Opt) *world {
	fake := startFake(t, opts...)
	w := &world{T: t, fake: fake, brokers: fake.ListenAddrs()}
	w.topic = createTopic(t, w.brokers, partitions, nil)
	w.sink, w.network = newSink(t, Config{Brokers: w.brokers})
	w.sink.patience, w.sink.rest = 600*time.Millisecond, 400*time.Millisecond // it is spent in most of these tests
	return w
}

// several tells the sink that its messages have different topics.
func (w *world) several() { w.sink.config.Topics = sinks.SeveralTopics }

// fault makes produce requests for the topic fail.
func (w *world) fault(err *kerr.Error, count int) *kfake.FaultHandle {
	h := w.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: w.topic, Err: err, Count: count})
	w.Cleanup(h.Remove)
	return h
}

// observe counts produce requests.
func (w *world) observe() *kfake.FaultHandle {
	h := w.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Count: -1, Observe: true})
	w.Cleanup(h.Remove)
	return h
}

func (w *world) deliver(batch []sinks.Message) []error {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 5*time.Second)
	defer cancel()
	return w.sink.Deliver(ctx, batch)
}

// expectOnce checks that the topic holds the messages, once, and those of each aggregate in order.
func (w *world) expectOnce(want []sinks.Message) {
	w.Helper()
	position := make(map[string]int)
	for i := range want {
		position[want[i].Event.ID] = i
	}
	last := make(map[string]int)
	seen := make(map[string]bool)
	for _, r := range consume(w, w.brokers, w.topic) {
		id := headerOf(r, "id")
		i, ok := position[id]
		if key := string(r.Key); !ok || seen[id] || i < last[key] {
			w.Errorf("record %s of %s: expected %t, repeated %t, position %d after %d", id, key, ok, seen[id], i, last[key])
		} else {
			last[key] = i
		}
		seen[id] = true
	}
	if len(seen) != len(want) {
		w.Errorf("%d of %d messages arrived", len(seen), len(want))
	}
}

func allOf(errs []error, n int, class error) bool {
	return len(errs) == n && !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, class) })
}

// TestPassingFaults: what passes within patience is no failure, and is accepted once.
func TestPassingFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err   *kerr.Error
		count int
	}{
		"not leader":                      {kerr.NotLeaderForPartition, 1},
		"election":                        {kerr.LeaderNotAvailable, 2},
		"not enough replicas":             {kerr.NotEnoughReplicas, 2},
		"replicas lost behind the append": {kerr.NotEnoughReplicasAfterAppend, 2}, // written, and answered with an error
		"timed out behind the append":     {kerr.RequestTimedOut, 1},              // likewise
		"unknown for a moment":            {kerr.UnknownTopicOrPartition, 1},
		"broker forgot us":                {kerr.UnknownProducerID, 1},
		"broker counts otherwise":         {kerr.OutOfOrderSequenceNumber, 1},
		"fenced":                          {kerr.InvalidProducerEpoch, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2)
			first, second, third := messages(w.topic, 20, 5), messages(w.topic, 40, 5)[20:], messages(w.topic, 60, 5)[40:]
			if errs := w.deliver(first); errs != nil {
				t.Fatal(errs)
			}
			h := w.fault(c.err, c.count)
			if errs := w.deliver(second); errs != nil {
				t.Errorf("want nil, got %v", errs)
			}
			if h.Hits() != c.count {
				t.Errorf("%d of %d faults were hit", h.Hits(), c.count)
			}
			if errs := w.deliver(third); errs != nil {
				t.Errorf("afterwards: %v", errs)
			}
			w.expectOnce(slices.Concat(first, second, third))
		})
	}
}

// TestLeaderMoves: stale metadata costs a try.
func TestLeaderMoves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, kfake.NumBrokers(3))
	all := messages(w.topic, 300, 17)
	for batch := range slices.Chunk(all, 30) {
		for p := range int32(3) {
			next := (w.fake.LeaderFor(w.topic, p) + 1) % 3
			if err := w.fake.MoveTopicPartition(w.topic, p, next); err != nil {
				t.Fatal(err)
			}
		}
		if errs := w.deliver(batch); errs != nil {
			t.Fatal(errs)
		}
	}
	w.expectOnce(all)
}

// TestLeaderMovesWhileAway: where a partition is that was away is asked again, by each producer.
func TestLeaderMovesWhileAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, kfake.NumBrokers(2))
	all := messages(w.topic, 30, 5)
	other := w.sink.free // none
	if errs := w.deliver(all[:10]); errs != nil {
		t.Fatal(errs)
	}
	other, w.sink.free = w.sink.free, other // a second producer
	if errs := w.deliver(all[10:20]); errs != nil {
		t.Fatal(errs)
	}
	h := w.fault(kerr.LeaderNotAvailable, -1)
	for range 2 {
		if errs := w.deliver(all[20:25]); errs == nil {
			t.Fatal("accepted without a leader")
		}
		other, w.sink.free = w.sink.free, other
	}
	if err := w.fake.MoveTopicPartition(w.topic, 0, 1-w.fake.LeaderFor(w.topic, 0)); err != nil {
		t.Fatal(err)
	}
	h.Remove()
	for _, batch := range [][]sinks.Message{all[20:25], all[25:]} {
		if errs := w.deliver(batch); errs != nil {
			t.Error(errs)
		}
		other, w.sink.free = w.sink.free, other
	}
	w.expectOnce(all)
	w.sink.free = append(w.sink.free, other...)
}

// TestLastingFaults: what does not pass is unavailable; patience is spent once, and time-outs are not repeated at once.
func TestLastingFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    *kerr.Error
		tries  int  // of the second Deliver
		copies bool // may have been accepted all the same
	}{
		"no leader":           {err: kerr.LeaderNotAvailable, tries: 1},
		"not enough replicas": {err: kerr.NotEnoughReplicas, tries: 1},
		"time-out":            {err: kerr.RequestTimedOut, tries: 0, copies: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1)
			batch := messages(w.topic, 20, 5)
			h := w.fault(c.err, -1)
			began := time.Now()
			if errs := w.deliver(batch); errs == nil || !errors.Is(errs[0], sinks.ErrUnavailable) || !errors.Is(errs[0], c.err) {
				t.Errorf("want ErrUnavailable with %v, got %v", c.err, errs)
			}
			if took := time.Since(began); took < w.sink.patience || took > w.sink.patience+2*time.Second {
				t.Errorf("took %v, patience is %v", took, w.sink.patience)
			}
			hits := h.Hits()
			began = time.Now()
			if errs := w.deliver(batch); errs == nil || !errors.Is(errs[0], sinks.ErrUnavailable) {
				t.Errorf("second: want ErrUnavailable, got %v", errs)
			}
			if took := time.Since(began); took > w.sink.patience/2 {
				t.Errorf("second: took %v", took)
			}
			if tries := h.Hits() - hits; tries != c.tries {
				t.Errorf("second: %d tries, want %d", tries, c.tries)
			}
			h.Remove()
			deadline := time.Now().Add(5 * time.Second)
			for w.deliver(batch) != nil {
				if time.Now().After(deadline) {
					t.Fatal("does not recover")
				}
				<-time.After(20 * time.Millisecond)
			}
			if !c.copies {
				w.expectOnce(batch)
			}
		})
	}
}

// TestOnePartitionAway: the others go on, at once.
func TestOnePartitionAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	h := w.fake.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: w.topic, Partitions: []int32{1}, Err: kerr.RequestTimedOut, Count: -1,
	})
	defer h.Remove()
	w.sink.rest = time.Hour
	for round := range 5 {
		batch := messages(w.topic, 100, 30)
		began := time.Now()
		errs := w.deliver(batch)
		if took := time.Since(began); round > 0 && took > w.sink.patience {
			t.Errorf("round %d took %v", round, took)
		}
		away, accepted := 0, 0
		for _, err := range errs {
			switch {
			case err == nil:
				accepted++
			case errors.Is(err, sinks.ErrUnavailable) || errors.Is(err, sinks.ErrNotAttempted):
				away++
			default:
				t.Errorf("round %d: %v", round, err)
			}
		}
		if away == 0 || accepted == 0 {
			t.Errorf("round %d: %d accepted, %d away", round, accepted, away)
		}
	}
}

// TestOversizedBatch: a topic's limit is found out with few requests, and remembered.
func TestOversizedBatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.topic = createTopic(t, w.brokers, 1, map[string]string{"max.message.bytes": "20000"})
	requests := w.observe()
	all := messages(w.topic, 400, 7)
	for i, most := range []int{20, 10} {
		before := requests.Hits()
		if errs := w.deliver(all[200*i : 200*(i+1)]); errs != nil {
			t.Fatal(errs)
		}
		if n := requests.Hits() - before; n > most {
			t.Errorf("Deliver %d of 200 events of 500 bytes took %d requests, want at most %d", i+1, n, most)
		}
	}
	w.expectOnce(all)
}

// TestAggregateInTwoTopics: what is accepted together is known only within a partition, so the second topic waits for
// the first, and gets nothing when that fails.
func TestAggregateInTwoTopics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	other := createTopic(t, w.brokers, 1, nil)
	batch := []sinks.Message{
		message(w.topic, "a", "a1", 10), message(other, "a", "a2", 10), message(w.topic, "a", "a3", 10),
		message(other, "b", "b1", 10), message(w.topic, "b", "b2", 10),
		message(w.topic, "c", "c1", 10), message("no topic", "c", "c2", 10), message(other, "c", "c3", 10),
		message("no topic", "d", "d1", 10), message(other, "d", "d2", 10),
	}
	w.fault(kerr.TopicAuthorizationFailed, -1)
	classes := func(errs []error) (names []string) {
		for _, err := range errs {
			name := "accepted"
			for class, n := range map[error]string{
				sinks.ErrPermanent: "permanent", sinks.ErrUnavailable: "unavailable", sinks.ErrNotAttempted: "not attempted",
			} {
				if errors.Is(err, class) {
					name = n
				}
			}
			names = append(names, name)
		}
		return names
	}
	want := []string{
		"unavailable", "not attempted", "not attempted", "accepted", "unavailable",
		"unavailable", "not attempted", "not attempted", "permanent", "not attempted",
	}
	if diff := cmp.Diff(want, classes(w.deliver(batch))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"b1"}, ids(consume(t, w.brokers, other))); diff != "" {
		t.Error(diff)
	}
}

// TestNoTimeLeft: messages of which no wave was made are not sent. That says something about the cluster only if nothing else
// has answered.
func TestNoTimeLeft(t *testing.T) {
	t.Parallel()
	batch := []sinks.Message{message("t", "a", "a1", 10), message("t", "a", "a2", 10), message("t", "b", "b1", 10), message("t", "b", "b2", 10)}
	for _, c := range []struct {
		p    *producer
		want error
	}{
		{&producer{}, sinks.ErrUnavailable},
		{&producer{cluster: answering}, sinks.ErrNotAttempted},
		{&producer{cluster: answering, gone: kerr.ClusterAuthorizationFailed}, sinks.ErrUnavailable},
	} {
		d := &delivery{p: c.p, records: make([]record, len(batch))}
		d.batch.Begin(batch)
		d.fail(0, sinks.ErrPermanent)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		d.failRest(ctx)
		for i, err := range d.batch.Errors() {
			if want := []error{sinks.ErrPermanent, sinks.ErrNotAttempted, c.want, sinks.ErrNotAttempted}[i]; !errors.Is(err, want) {
				t.Errorf("message %d, evidence %d, %v: want %v, got %v", i, c.p.cluster, c.p.gone, want, err)
			}
		}
	}
}

// TestTopicAppears: an unknown topic is unavailable at once, and no more once it was created.
func TestTopicAppears(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.sink.patience = time.Minute
	m := message("not.yet", "a", "1", 10)
	for range 2 {
		errs := w.deliver([]sinks.Message{m})
		if !allOf(errs, 1, sinks.ErrUnavailable) || !errors.Is(errs[0], kerr.UnknownTopicOrPartition) {
			t.Fatalf("want ErrUnavailable, got %v", errs)
		}
	}
	if _, err := admin(t, w.brokers).CreateTopic(t.Context(), 1, 1, nil, "not.yet"); err != nil {
		t.Fatal(err)
	}
	if errs := w.deliver([]sinks.Message{m}); errs != nil {
		t.Errorf("the topic was created: %v", errs)
	}
}

// TestTopicMadeAnew: with fewer partitions, and no trace of our sequence numbers.
func TestTopicMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	batch := messages(w.topic, 30, 10)
	if errs := w.deliver(batch); errs != nil {
		t.Fatal(errs)
	}
	a := admin(t, w.brokers)
	if _, err := a.DeleteTopic(t.Context(), w.topic); err != nil {
		t.Fatal(err)
	}
	if errs := w.deliver(batch); len(errs) != len(batch) || !errors.Is(errs[0], sinks.ErrUnavailable) {
		t.Errorf("the topic was deleted: want ErrUnavailable, got %v", errs)
	}
	if _, err := a.CreateTopic(t.Context(), 1, 1, nil, w.topic); err != nil {
		t.Fatal(err)
	}
	if errs := w.deliver(batch); errs != nil {
		t.Errorf("the topic was made anew: %v", errs)
	}
	w.expectOnce(batch)
}

// TestBrokersAway: connections refused are known to be away within patience, and then at once.
func TestBrokersAway(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("topic known %t", known), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2)
			batch := messages(w.topic, 20, 5)
			if known {
				if errs := w.deliver(batch); errs != nil {
					t.Fatal(errs)
				}
			}
			back := w.network.goAway()
			for i, most := range []time.Duration{w.sink.patience + 2*time.Second, time.Second} {
				began := time.Now()
				errs := w.deliver(batch)
				if len(errs) != len(batch) || !errors.Is(errs[0], sinks.ErrUnavailable) {
					t.Errorf("Deliver %d: want ErrUnavailable, got %v", i, errs)
				}
				if took := time.Since(began); took > most {
					t.Errorf("Deliver %d took %v", i, took)
				}
			}
			back()
			errs := w.deliver(batch)
			for until := time.Now().Add(10 * time.Second); errs != nil && time.Now().Before(until); { // on a slow machine it timed out, and rests
				errs = w.deliver(batch)
			}
			if errs != nil {
				t.Errorf("the brokers are back: %v", errs)
			}
		})
	}
}

// TestEpochsRunOut: behind the last one comes a new producer id.
func TestEpochsRunOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	all := messages(w.topic, 30, 5)
	if errs := w.deliver(all[:10]); errs != nil {
		t.Fatal(errs)
	}
	p := w.sink.free[0]
	id := p.id
	p.epoch, p.stale = math.MaxInt16-2, true
	if errs := w.deliver(all[10:20]); errs != nil || p.id != id || p.epoch != math.MaxInt16-1 {
		t.Errorf("the last epoch: producer %d (was %d), epoch %d: %v", p.id, id, p.epoch, errs)
	}
	p.stale = true
	if errs := w.deliver(all[20:30]); errs != nil || p.id == id || p.epoch != 0 {
		t.Errorf("behind the last epoch: producer %d (was %d), epoch %d: %v", p.id, id, p.epoch, errs)
	}
	w.expectOnce(all[:30])
}

// TestUnknownStaysUnknown: what is written and answered with a time-out may be there, whatever its repetition is told.
func TestUnknownStaysUnknown(t *testing.T) {
	t.Parallel()
	for _, then := range []*kerr.Error{kerr.MessageTooLarge, kerr.OutOfOrderSequenceNumber, kerr.UnknownServerError} {
		t.Run(then.Message, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1)
			w.fault(kerr.RequestTimedOut, 1)
			w.fault(then, 1)
			batch := messages(w.topic, 2, 1)
			if errs := w.deliver(batch); !allOf(errs, len(batch), sinks.ErrUnavailable) {
				t.Errorf("want ErrUnavailable for all, got %v", errs)
			}
			if n := len(consume(t, w.brokers, w.topic)); n != len(batch) {
				t.Errorf("want each once, got %d records", n)
			}
		})
	}
}
