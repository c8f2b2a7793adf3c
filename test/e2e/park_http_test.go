package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// Some aggregates are refused, each with an answer of its own, among healthy ones: what cannot be accepted dies, what is
// refused dies after its attempts, what is away waits without using any, and all others arrive.
func TestAnswersToSomeAggregates(t *testing.T) {
	t.Parallel()
	const each, retries = 3, 2
	attempts := map[int]int{400: 1, 500: 1 + retries, 302: 0, 401: 0, 408: 0, 410: 0, 429: 0}
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}, delivery: map[string]any{"max_retries": retries}})
	var mended, resets sync.Map
	w.hook.meet(func(id, aggregate string) answer {
		kind, ok := strings.CutPrefix(aggregate, "answer-")
		if !ok {
			return answer{}
		}
		if kind == "reset" { // after it was accepted
			_, again := resets.LoadOrStore(id, true)
			return answer{reset: !again}
		}
		if _, well := mended.Load(kind); well {
			return answer{}
		}
		status, _ := strconv.Atoi(kind)
		return answer{status: status}
	})
	c := w.connector()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 2, aggregates: 20, rate: 30})
	dead, waits := 0, 0
	for status, n := range attempts {
		w.insertInto("answer-"+strconv.Itoa(status), each)
		if n > 0 {
			dead += each
		} else {
			waits += each
		}
	}
	w.insertInto("answer-reset", each)
	w.goesOn(20 * time.Second)
	eventually(t, 40*time.Second, "those dead that are to die", func() error {
		if n := w.ofSink("webhook", "k.status = 'dead'"); n != dead {
			return fmt.Errorf("%d of %d are", n, dead)
		}
		return nil
	})
	l.stop()
	eventually(t, 30*time.Second, "all others delivered", func() error {
		if n := w.parked(); n != waits {
			return fmt.Errorf("%d are parked, %d of them are to be", n, waits)
		}
		return nil
	})
	for status, n := range attempts {
		found := ask[string](w, `select concat(count(*), ' with ', min(attempts), ' to ', max(attempts)) from outbox_parked
			where event ->> 'aggregate_id' = $1 and (status = 'dead' or tries > 0)`, "answer-"+strconv.Itoa(status))
		if want := fmt.Sprintf("%d with %d to %d", each, n, n); n > 0 && found != want {
			t.Errorf("%d: dead letters: %s attempts, want %s", status, found, want)
		}
		if n == 0 && !strings.HasSuffix(found, " with 0 to 0") {
			t.Errorf("%d: waiting: %s attempts, want none used", status, found)
		}
	}
	for _, kind := range []string{"302", "401", "408", "410", "429"} {
		mended.Store(kind, true)
	}
	w.verify(expectation{resets: each, status: w.statusOf(func(ev event) string {
		status, _ := strconv.Atoi(strings.TrimPrefix(ev.aggregateID, "answer-"))
		if attempts[status] > 0 {
			return "dead"
		}
		return ""
	})})
	c.ready("leader")
	c.term()
}

// One message is never answered, among healthy ones: they arrive; it waits, uses no attempt, leaves the breaker closed and
// dies by give_up_after.
func TestMessageThatIsNeverAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}, delivery: map[string]any{"timeout": "1s", "give_up_after": "8s", "max_retries": 0}})
	w.hook.meet(func(_, aggregate string) answer { return answer{hang: aggregate == "stuck"} })
	c := w.connector()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 2, aggregates: 20, rate: 30})
	w.deliveredAtLeast(20*time.Second, 50)
	w.insertInto("stuck", 1)
	eventually(t, 20*time.Second, "tried three times", func() error {
		if w.ofSink("webhook", "k.event ->> 'aggregate_id' = 'stuck' and k.status = 'parked' and k.tries >= 3 and k.attempts = 0") == 0 {
			return errors.New("it is not there")
		}
		return nil
	})
	w.deliveredAtLeast(20*time.Second, w.delivered()+50)
	eventually(t, 40*time.Second, "dead", func() error {
		if w.ofSink("webhook", "k.status = 'dead' and k.attempts = 0") != 1 {
			return errors.New("it is not")
		}
		return nil
	})
	w.deliveredAtLeast(20*time.Second, w.delivered()+50)
	l.stop()
	w.verify(expectation{status: w.statusOf(func(ev event) string {
		if ev.aggregateID == "stuck" {
			return "dead"
		}
		return ""
	})})
	if strings.Contains(tail(c.last().stderr, 1000), "breaker open") {
		t.Error("one message has opened the breaker")
	}
	c.term()
}

// A receiver is broken and refuses everything for good: five letters are dead, then the sink is suspect. The rest is parked and
// arrives once the receiver is mended.
func TestReceiverThatRefusesEverything(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusBadRequest, http.StatusInternalServerError} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{sinks: []string{"webhook", "stdout"}, delivery: map[string]any{"max_retries": 0}})
			w.hook.status.Store(int64(status))
			c := w.connector()
			c.start()
			c.ready("leader")
			const aggregates = 300
			w.insertEach("some", aggregates)
			w.goesOn(20 * time.Second)
			w.parksAtLeast(20*time.Second, "webhook", aggregates-5)
			c.degraded("sink:webhook", "suspect", strconv.Itoa(status))
			passes(t, 4*time.Second) // some probes
			w.insertEach("more", aggregates)
			w.goesOn(20 * time.Second)
			if n := w.ofSink("webhook", "k.status = 'dead'"); n != 5 {
				t.Errorf("%d letters are dead, want 5", n)
			}
			if n := w.ofSink("webhook", "k.status = 'parked' and k.attempts > 0"); n > 0 {
				t.Errorf("%d of those that wait have used attempts", n)
			}
			c.says("sink is suspect")
			w.snapshot()
			w.hook.status.Store(0)
			w.live(c, 40*time.Second)
			w.verify(expectation{status: w.deadOf("webhook")})
			c.ready("leader")
			c.term()
		})
	}
}

// A webhook of 50 a second beside Kafka at 1,000: Kafka is not held back, for the slow one's arrivals are parked.
func TestSlowReceiver(t *testing.T) {
	t.Parallel()
	const seconds, perSecond, slow = 8, 1000, 50
	w := newWorld(t, worldOptions{sinks: []string{"kafka", "webhook"}, delivery: map[string]any{"park_after": "2s", "max_in_flight": 2000, "batch_size": 100}})
	w.batchSize = 100
	limiter := rate.NewLimiter(slow, 1)
	w.hook.meet(func(string, string) answer {
		if limiter.Wait(context.Background()) != nil {
			return answer{status: http.StatusServiceUnavailable}
		}
		return answer{}
	})
	c := w.connector()
	c.start()
	c.ready("leader")
	began := time.Now()
	tick := time.NewTicker(time.Second / 20)
	defer tick.Stop()
	for i := range 20 * seconds {
		w.insertEach("n"+strconv.Itoa(i%8), perSecond/20)
		<-tick.C
	}
	eventually(t, 20*time.Second, "all to Kafka", func() error {
		if n := w.deliveredTo("kafka"); n < seconds*perSecond {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	took := time.Since(began)
	hook := w.deliveredTo("webhook")
	t.Logf("after %.1f s: all to Kafka, %d to the webhook", took.Seconds(), hook)
	if hook > 2*slow*int(took.Seconds()+1) {
		t.Errorf("the webhook has got %d: it was not slow", hook)
	}
	w.parksAtLeast(20*time.Second, "webhook", seconds*perSecond/2)
	w.snapshot()
	if n := w.ofSink("webhook", "k.attempts > 0"); n > 0 {
		t.Errorf("%d deliveries to a slow sink have used attempts", n)
	}
	limiter.SetLimit(rate.Inf)
	w.live(c, time.Minute)
	w.verify(expectation{})
	c.ready("leader")
	c.term()
}
