package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// destination starts what a sink of a type delivers to, where it is not shared, and says so in the sink's configuration.
func (w *world) destination(typ string, sink map[string]any) {
	w.t.Helper()
	ctx := context.Background()
	var err error
	switch typ {
	case "kafka":
		sink["brokers"] = w.kafka.Brokers()
		if proxy := w.kafka.Proxy(); w.proxied && proxy != nil {
			w.proxies[typ], sink["brokers"] = proxy, []string{proxy.Addr()}
		}
		w.createTopics()
		w.log = newKafkaLog(w.t, w.kafka.Brokers(), w.topics.names())
	case "webhook":
		w.hook = newHook(w.t, w.topics)
		sink["url"], sink["allow_hosts"] = "http://"+w.reach(typ, w.hook.server.Listener.Addr().String())+"/events", []string{"127.0.0.1"}
		sink["secret"], sink["body"] = []string{hookSecret, "whsec_" + strings.Repeat("b2xk", 10)}, "cloudevents"
	case "event_bus":
		if w.nats, err = servers.StartNATS(ctx, servers.NATSOptions{}); err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { closes(w.t, w.nats) })
		sink["url"] = "nats://" + w.reach(typ, w.nats.Addr())
		w.createStream()
	case "redis_stream":
		// Each command is on the disk before it is answered: what was accepted must outlive a kill.
		if w.redis, err = servers.StartRedis(ctx, servers.RedisOptions{Settings: map[string]string{"appendonly": "yes", "appendfsync": "always"}}); err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { closes(w.t, w.redis) })
		sink["url"] = "redis://" + w.reach(typ, w.redis.Addr())
		if w.missing != "" { // a stream cannot have the name of a key of another type
			w.redisDo("SET " + w.topics.of(w.missing) + " taken")
		}
	}
}

// reach is the address by which a sink reaches a server: through a proxy of its own where the world asks for that.
func (w *world) reach(typ, address string) string {
	w.t.Helper()
	if !w.proxied {
		return address
	}
	proxy, err := servers.NewProxy(address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { closes(w.t, proxy) })
	w.proxies[typ] = proxy
	return proxy.Addr()
}

func closes(t testing.TB, c io.Closer) {
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// received is all that the destination of a type has, in its order.
func (w *world) received(typ string) []delivery {
	w.t.Helper()
	switch typ {
	case "stdout":
		return w.printed()
	case "webhook":
		return w.hook.received()
	case "event_bus":
		return w.streamed()
	case "redis_stream":
		return w.added()
	}
	return w.log.read()
}

const hookSecret = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// hook is a receiver of webhooks that checks signatures and keeps what it was sent.
type hook struct {
	server *httptest.Server
	status atomic.Int64 // what it answers; 0 is 204
	asked  atomic.Int64 // how many requests came
	answer atomic.Pointer[func(id, aggregate string) answer]

	authorization atomic.Pointer[string] // the header that it takes; nil: any
	refused       atomic.Int64           // how many requests had another one

	mu    sync.Mutex
	got   []delivery
	first map[string]time.Time   // when the first message was kept, by the path of the URL
	came  map[string][]time.Time // when each request came, by the path of the URL
}

// firstAt is when the first message that was sent to this path of the URL was kept; zero if none was.
func (h *hook) firstAt(path string) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.first[path]
}

// requests returns when requests to this path of the URL came.
func (h *hook) requests(path string) []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.came[path])
}

// note notes that a request has come.
func (h *hook) note(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.came[path] = append(h.came[path], time.Now())
}

// answer is how a receiver meets one request.
type answer struct {
	status int  // 0 is 204, which keeps what was sent
	reset  bool // it is kept, and the connection ends instead of an answer
	hang   bool // it is neither kept nor answered
}

// meet makes the receiver answer so from now on; nil: all is well.
func (h *hook) meet(how func(id, aggregate string) answer) {
	if how == nil {
		h.answer.Store(nil)
		return
	}
	h.answer.Store(&how)
}

func newHook(t testing.TB, names topics) *hook {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(hookSecret)
	if err != nil {
		t.Fatal(err)
	}
	h := &hook{first: map[string]time.Time{}, came: map[string][]time.Time{}}
	h.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		h.note(r.URL.Path)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the sender was killed
		}
		if err := verifier.Verify(body, r.Header); err != nil {
			t.Errorf("webhook: %v", err)
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		if h.refuses(r) {
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		a := answer{status: int(h.status.Load())}
		if how := h.answer.Load(); how != nil {
			a = (*how)(r.Header.Get("webhook-id"), r.Header.Get("ce-subject"))
		}
		if a.hang {
			<-r.Context().Done()
			return
		}
		if a.status != 0 {
			rw.WriteHeader(a.status)
			return
		}
		h.mu.Lock()
		if h.first[r.URL.Path].IsZero() {
			h.first[r.URL.Path] = time.Now()
		}
		h.got = append(h.got, delivery{
			id: r.Header.Get("webhook-id"), topic: names.of(r.Header.Get("ce-aggregatetype")), key: r.Header.Get("ce-subject"),
			payload: string(body), place: "hook", at: time.Now(),
		})
		h.mu.Unlock()
		if a.reset {
			panic(http.ErrAbortHandler)
		}
		rw.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(h.server.Close)
	return h
}

func (h *hook) received() []delivery {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.got)
}

// jetStream connects to the world's NATS server.
func (w *world) jetStream() jetstream.JetStream {
	w.t.Helper()
	conn, err := nats.Connect(w.nats.URL())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		w.t.Fatal(err)
	}
	return js
}

func (w *world) createStream() {
	w.t.Helper()
	config := jetstream.StreamConfig{
		Name: "events", Subjects: []string{w.topics.prefix + ".>"}, Storage: jetstream.FileStorage,
		Duplicates: time.Millisecond * 100, // so short that repetitions show
	}
	if w.missing != "" {
		config.Subjects = w.presentTopics()
	}
	_, err := w.jetStream().CreateOrUpdateStream(w.t.Context(), config)
	if err != nil {
		w.t.Fatal(err)
	}
}

// streamed reads the whole stream.
func (w *world) streamed() (all []delivery) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	stream, err := w.jetStream().Stream(ctx, "events")
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for seq := max(info.State.FirstSeq, 1); seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, delivery{
			id: m.Header.Get("Nats-Msg-Id"), topic: m.Subject, key: m.Header.Get("ce-subject"), payload: string(m.Data), place: "stream", at: m.Time,
		})
	}
	return all
}

// added reads the streams in Redis.
func (w *world) added() (all []delivery) {
	w.t.Helper()
	options, err := redis.ParseURL(w.redis.URL())
	if err != nil {
		w.t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	for _, name := range w.topics.names() {
		entries, err := client.XRange(w.t.Context(), name, "-", "+").Result()
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			text := func(field string) string { return fmt.Sprint(e.Values[field]) }
			at, _, _ := strings.Cut(e.ID, "-")
			ms, err := strconv.ParseInt(at, 10, 64)
			if err != nil {
				w.t.Fatal(err)
			}
			all = append(all, delivery{
				id: text("id"), topic: name, key: text("aggregate_id"), payload: text("payload"), place: name, at: time.UnixMilli(ms),
			})
		}
	}
	return all
}
