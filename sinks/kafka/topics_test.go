package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// outcomes is how many messages of a Deliver were accepted, found their topic away, found the cluster away, were put off, and were
// behind another message.
type outcomes struct{ accepted, topicAway, clusterAway, putOff, behind int }

// outcomesOf also returns the longest time for which a message was put off.
func outcomesOf(t testing.TB, batch []sinks.Message, errs []error) (o outcomes, wait time.Duration) {
	t.Helper()
	if errs == nil {
		return outcomes{accepted: len(batch)}, 0
	}
	for i, err := range errs {
		switch {
		case err == nil:
			o.accepted++
		case errors.Is(err, sinks.ErrTopicUnavailable):
			o.topicAway++
		case errors.Is(err, sinks.ErrUnavailable):
			o.clusterAway++
		case errors.Is(err, sinks.ErrNotAttempted) && sinks.RetryAfter(err) > 0:
			o.putOff++
			wait = max(wait, sinks.RetryAfter(err))
		case errors.Is(err, sinks.ErrNotAttempted):
			o.behind++
		default:
			t.Errorf("message %s: %v", batch[i].Event.ID, err)
		}
	}
	return o, wait
}

// expectOutcomes delivers batch, and checks what became of the messages, and that it did not last longer than most.
func (w *world) expectOutcomes(batch []sinks.Message, want outcomes, most time.Duration) {
	w.Helper()
	began := time.Now()
	errs := w.deliver(batch)
	took := time.Since(began)
	if got, _ := outcomesOf(w, batch, errs); got != want {
		w.Errorf("want %+v, got %+v: %v", want, got, errors.Join(errs...))
	}
	if took > most {
		w.Errorf("took %v, want at most %v", took, most)
	}
}

// expectPutOff is expectOutcomes for a batch some of which was just found away. On a slow machine its time may have passed already.
// Then it was asked again, and is put off for longer. expectPutOff returns for how long it is put off, and in which call.
func (w *world) expectPutOff(batch []sinks.Message, want outcomes) (wait time.Duration, calls int) {
	w.Helper()
	var errs []error
	for calls = range 5 {
		errs = w.deliver(batch)
		if got, wait := outcomesOf(w, batch, errs); got == want {
			return wait, calls + 1
		}
	}
	w.Fatalf("want %+v, got: %v", want, errors.Join(errs...))
	return 0, 0
}

// singles makes n messages of aggregates of their own.
func singles(topic, prefix string, n int) (batch []sinks.Message) {
	for i := range n {
		aggregate := fmt.Sprint(prefix, i)
		batch = append(batch, message(topic, aggregate, aggregate, 100))
	}
	return batch
}

const quick = 2 * time.Second // for what takes some milliseconds on a machine with nothing else to do

// TestMissingTopic: a topic that does not exist costs other topics no time, and is asked for at growing distances.
func TestMissingTopic(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.several()
	w.sink.patience, w.sink.topicPatience = time.Minute, time.Minute // they would show
	const missing = "missing"
	gone := append(singles(missing, "gone", 3), message(missing, "gone0", "another", 10))
	asked := w.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Observe: true, Count: -1, When: func(req kmsg.Request) bool {
		return slices.ContainsFunc(req.(*kmsg.MetadataRequest).Topics, func(t kmsg.MetadataRequestTopic) bool { return *t.Topic == missing })
	}})
	defer asked.Remove()
	batch := slices.Concat(gone[:2], singles(w.topic, "good", 10), gone[2:])
	away, putOff := outcomes{accepted: 10, topicAway: 3, behind: 1}, outcomes{accepted: 10, putOff: 3, behind: 1}

	w.expectOutcomes(batch, away, quick)
	wait, calls := w.expectPutOff(batch, putOff)
	if wait > time.Second<<(calls-1) || asked.Hits() != calls {
		t.Errorf("call %d was put off for %v; asked %d times, want one less than calls", calls+1, wait, asked.Hits())
	}
	<-time.After(wait)
	w.expectOutcomes(batch, away, quick)
	wait, more := w.expectPutOff(batch, putOff)
	if wait > time.Second<<(calls+more-1) || asked.Hits() != calls+more {
		t.Errorf("call %d was put off for %v; asked %d times, want %d", calls+more+2, wait, asked.Hits(), calls+more)
	}
	createTopicNamed(t, w.brokers, missing, 1, nil)
	<-time.After(wait)
	if errs := w.deliver(gone); errs != nil {
		t.Errorf("the topic was created: %v", errs)
	}
	if _, known := w.sink.topics.Known(place{missing, wholeTopic}); known {
		t.Error("the topic was created, and counts as away")
	}
}

// TestOneTopicIsNotPutOff: if the only topic does not exist, the sink is as good as away.
func TestOneTopicIsNotPutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	for range 3 {
		w.expectOutcomes(singles("missing", "a", 3), outcomes{clusterAway: 3}, quick)
	}
	h := w.fault(kerr.LeaderNotAvailable, -1)
	for range 3 {
		w.expectOutcomes(singles(w.topic, "a", 3), outcomes{clusterAway: 3}, w.sink.patience+quick)
	}
	h.Remove()
	w.expectOutcomes(singles(w.topic, "a", 3), outcomes{accepted: 3}, quick)
}

// TestElectionOfOneTopic: if one partition has no leader, the others wait for it once, and briefly. It is put off for a second, and
// is asked again without anybody waiting.
func TestElectionOfOneTopic(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.several()
	w.sink.patience = time.Minute
	other := createTopic(t, w.brokers, 3, nil)
	w.expectOutcomes(slices.Concat(singles(w.topic, "a", 1), singles(other, "b", 1)), outcomes{accepted: 2}, quick)
	h := w.fault(kerr.LeaderNotAvailable, -1)
	batch := slices.Concat(singles(w.topic, "a", 3), singles(other, "b", 30))
	away, putOff := outcomes{accepted: 30, topicAway: 3}, outcomes{accepted: 30, putOff: 3}

	w.expectOutcomes(batch, away, w.sink.topicPatience+quick)
	if h.Hits() < 2 {
		t.Errorf("tried %d times, want for as long as an election takes", h.Hits())
	}
	wait, calls := w.expectPutOff(batch, putOff)
	if wait > time.Second<<(calls-1) {
		t.Errorf("call %d was put off for %v", calls, wait)
	}
	<-time.After(wait)
	before := h.Hits()
	w.sink.topicPatience = time.Minute // it would show
	w.expectOutcomes(batch, away, quick)
	if n := h.Hits() - before; n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	h.Remove()
	wait, _ = w.expectPutOff(batch, putOff)
	<-time.After(wait)
	w.expectOutcomes(batch, outcomes{accepted: 33}, quick)

	w.sink.topicPatience = topicPatience
	w.fault(kerr.LeaderNotAvailable, -1)
	w.expectOutcomes(batch, away, w.sink.topicPatience+quick)
	if wait, calls = w.expectPutOff(batch, putOff); wait > time.Second<<(calls-1) {
		t.Errorf("it has answered meanwhile, and call %d was put off for %v", calls, wait)
	}
}

// TestLeaderMovesWhilePutOff: a partition that is asked again is asked at the leader that it has then.
func TestLeaderMovesWhilePutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, kfake.NumBrokers(2))
	w.several()
	batch := singles(w.topic, "a", 3)
	leader := w.fake.LeaderFor(w.topic, 0)
	h := w.fault(kerr.LeaderNotAvailable, -1)
	w.expectOutcomes(batch, outcomes{topicAway: 3}, w.sink.topicPatience+quick)
	wait, _ := w.expectPutOff(batch, outcomes{putOff: 3})
	if err := w.fake.MoveTopicPartition(w.topic, 0, 1-leader); err != nil {
		t.Fatal(err)
	}
	h.Remove()
	<-time.After(wait)
	w.expectOutcomes(batch, outcomes{accepted: 3}, quick)
}

// TestForbiddenTopic: no right to one topic does not concern the others; no right to anything concerns the sink.
func TestForbiddenTopic(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.several()
	other := createTopic(t, w.brokers, 1, nil)
	batch := slices.Concat(singles(w.topic, "a", 3), singles(other, "b", 3))
	h := w.fault(kerr.TopicAuthorizationFailed, -1)
	w.expectOutcomes(batch, outcomes{accepted: 3, topicAway: 3}, quick)
	wait, _ := w.expectPutOff(batch, outcomes{accepted: 3, putOff: 3})
	h.Remove()
	<-time.After(wait)
	w.expectOutcomes(batch, outcomes{accepted: 6}, quick)

	h = w.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.ClusterAuthorizationFailed, Count: -1})
	defer h.Remove()
	for range 2 {
		w.expectOutcomes(batch, outcomes{clusterAway: 6}, quick)
	}
	hits := h.Hits()
	large := message(w.topic, "large", "large", 600_000) // two such messages do not fit into one batch
	second := message(w.topic, "second", "second", 600_000)
	w.expectOutcomes([]sinks.Message{large, second}, outcomes{clusterAway: 2}, quick)
	if n := h.Hits() - hits; n != 1 {
		t.Errorf("%d requests after the first one was forbidden", n-1)
	}
}

// TestRefusalEndsRest: a partition that refuses a message is not away.
func TestRefusalEndsRest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.several()
	at := place{w.topic, 0}
	w.sink.topics.Found(at, time.Now().Add(-time.Hour))
	h := w.fault(kerr.MessageTooLarge, 1)
	if errs := w.deliver(singles(w.topic, "a", 1)); !allOf(errs, 1, sinks.ErrPermanent) || h.Hits() != 1 {
		t.Errorf("want ErrPermanent, got %v", errs)
	}
	if _, known := w.sink.topics.Known(at); known {
		t.Error("a partition that has refused a message counts as away")
	}
}

// TestClusterAwayOfSeveralTopics: a cluster that is away as a whole is never put off, so that the breaker sees it.
func TestClusterAwayOfSeveralTopics(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ known, hang bool }{
		"refuses": {}, "hangs": {hang: true}, "refuses, topics known": {known: true}, "hangs, topics known": {known: true, hang: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2)
			w.several()
			batch := slices.Concat(singles(w.topic, "a", 5), singles(createTopic(t, w.brokers, 2, nil), "b", 5))
			if c.known {
				w.expectOutcomes(batch, outcomes{accepted: 10}, quick)
			}
			goAway := w.network.goAway
			if c.hang {
				goAway = w.network.hang
			}
			back := goAway()
			for i := range 4 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				errs := w.sink.Deliver(ctx, batch)
				cancel()
				if o, _ := outcomesOf(t, batch, errs); o != (outcomes{clusterAway: 10}) {
					t.Errorf("call %d: want ErrUnavailable for all, got %+v: %v", i, o, errors.Join(errs...))
				}
			}
			back()
			deadline := time.Now().Add(10 * time.Second)
			for errs := w.deliver(batch); errs != nil; errs = w.deliver(batch) {
				if time.Now().After(deadline) {
					t.Fatalf("the cluster is back: %v", errors.Join(errs...))
				}
				<-time.After(20 * time.Millisecond)
			}
		})
	}
}

// TestPutOffNeverHidesTheCluster: if the cluster is known to be away as a whole, so is a topic that was put off before.
func TestPutOffNeverHidesTheCluster(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.several()
	batch := slices.Concat(singles(w.topic, "a", 1), singles("missing", "b", 1))
	w.expectOutcomes(batch, outcomes{accepted: 1, topicAway: 1}, quick)
	later := time.Now().Add(time.Minute)
	w.sink.topics.Found(place{w.topic, 0}, later)
	w.sink.topics.Found(place{"missing", wholeTopic}, later)
	w.expectOutcomes(batch, outcomes{putOff: 2}, quick)
	w.sink.away.set(wholeCluster, later)
	w.expectOutcomes(batch, outcomes{clusterAway: 2}, quick)
}

// ledBy returns messages, one aggregate each, for a new topic that this broker leads.
func (w *world) ledBy(node int32, prefix string, n int) []sinks.Message {
	w.Helper()
	topic := createTopic(w, w.brokers, 1, nil)
	if w.fake.LeaderFor(topic, 0) != node {
		if err := w.fake.MoveTopicPartition(topic, 0, node); err != nil {
			w.Fatal(err)
		}
	}
	return singles(topic, prefix, n)
}

// TestOneBrokerAway: what the broker leads is away, but the cluster is not, also if nothing else is asked.
func TestOneBrokerAway(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{false, true} { // it was found away when nothing answered
		t.Run(fmt.Sprint("known ", known), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, kfake.NumBrokers(2))
			w.several()
			gone, good := w.ledBy(0, "a", 3), w.ledBy(1, "b", 3)
			w.expectOutcomes(slices.Concat(gone, good), outcomes{accepted: 6}, quick)
			w.sink.patience = 2 * time.Second
			if known {
				w.sink.away.set(place{gone[0].Topic, 0}, time.Time{})
			}
			w.network.only = w.brokers[0]
			back := w.network.goAway()
			w.expectOutcomes(gone, outcomes{topicAway: 3}, w.sink.topicPatience+quick)
			wait, _ := w.expectPutOff(slices.Concat(gone, good), outcomes{accepted: 3, putOff: 3})
			back()
			<-time.After(wait)
			w.expectOutcomes(slices.Concat(gone, good), outcomes{accepted: 6}, quick)
		})
	}
}

// TestHangingBroker: the first call lasts until its deadline. After that, what the broker leads is asked again when all else was
// accepted, and for a short while only.
func TestHangingBroker(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, kfake.NumBrokers(2))
	w.several()
	gone, good := w.ledBy(0, "a", 3), w.ledBy(1, "b", 3)
	batch := slices.Concat(gone, good)
	w.expectOutcomes(batch, outcomes{accepted: 6}, quick)
	w.network.only = w.brokers[0]
	back := w.network.hang()
	w.sink.patience = time.Second
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	errs := w.sink.Deliver(ctx, batch)
	if o, _ := outcomesOf(t, batch, errs); o != (outcomes{accepted: 3, topicAway: 3}) {
		t.Errorf("the deadline has passed: got %+v: %v", o, errors.Join(errs...))
	}
	wait, _ := w.expectPutOff(batch, outcomes{accepted: 3, putOff: 3})
	<-time.After(wait)
	w.expectOutcomes(batch, outcomes{accepted: 3, topicAway: 3}, w.sink.patience+quick)
	wait, _ = w.expectPutOff(batch, outcomes{accepted: 3, putOff: 3})
	back()
	<-time.After(wait)
	w.expectOutcomes(batch, outcomes{accepted: 6}, quick)
}

// TestHangingBrokerAlone: if a call asks only a broker that hangs, another one says meanwhile that the cluster is there.
func TestHangingBrokerAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, kfake.NumBrokers(2))
	w.several()
	gone, good := w.ledBy(0, "a", 3), w.ledBy(1, "b", 3)
	w.expectOutcomes(slices.Concat(gone, good), outcomes{accepted: 6}, quick)
	w.network.only = w.brokers[0]
	back := w.network.hang()
	w.sink.patience = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	errs := w.sink.Deliver(ctx, gone)
	if o, _ := outcomesOf(t, gone, errs); o != (outcomes{topicAway: 3}) {
		t.Errorf("want ErrTopicUnavailable for all, got %+v: %v", o, errors.Join(errs...))
	}
	w.expectPutOff(gone, outcomes{putOff: 3})
	back()
}

// TestAgainLast: partitions that are asked again come after all others, and in one wave of their own. An aggregate whose messages
// go to both stays in order.
func TestAgainLast(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.several()
	other := createTopic(t, w.brokers, 1, nil)
	w.expectOutcomes(slices.Concat(singles(w.topic, "a", 1), singles(other, "b", 1)), outcomes{accepted: 2}, quick)
	w.sink.topics.Found(place{w.topic, 0}, time.Now().Add(-time.Hour))
	sent := make(chan string, 10)
	h := w.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Observe: true, Count: -1, When: func(req kmsg.Request) bool {
		for _, t := range req.(*kmsg.ProduceRequest).Topics {
			sent <- t.Topic
		}
		return false
	}})
	batch := []sinks.Message{
		message(w.topic, "x", "x1", 10), message(other, "x", "x2", 10), message(other, "y", "y1", 10), message(w.topic, "y", "y2", 10),
	}
	w.expectOutcomes(batch, outcomes{accepted: 4}, quick)
	h.Remove()
	close(sent)
	var got []string
	for topic := range sent {
		got = append(got, topic)
	}
	got = slices.Compact(got) // each of the two brokers may see a request
	if want := []string{other, w.topic, other}; !slices.Equal(got, want) {
		t.Errorf("sent to %v, want %v", got, want)
	}
}
