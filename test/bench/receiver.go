//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

const (
	// receiverCommand makes this program a receiver of webhooks.
	receiverCommand = "receiver"
	// answerTime is how long a receiver takes to answer a request.
	answerTime = time.Millisecond
)

// receiver is the process that takes webhooks. It compares by itself what it receives with what was written.
type receiver struct {
	*process.Child
	url string
}

func (b *bench) startReceiver(ctx context.Context, events int) (destination, error) {
	port, err := servers.FreePort()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr := process.Loopback(port)
	c, err := process.Start(filepath.Join(b.dir, "receiver.log"), self, receiverCommand, "-listen", addr, "-events", strconv.Itoa(events))
	if err != nil {
		return nil, err
	}
	return receiver{Child: c, url: "http://" + addr}, c.AwaitListening(ctx, addr)
}

func (r receiver) sink() string {
	return fmt.Sprintf("type: webhook, url: %q, allow_hosts: [127.0.0.1], body: raw, secret: a-secret-of-the-benchmark", r.url+"/events")
}

func (r receiver) check(ctx context.Context) (c counts, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/counts", http.NoBody)
	if err != nil {
		return c, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return c, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return c, fmt.Errorf("the receiver says: %s", text)
	}
	return c, json.NewDecoder(answer.Body).Decode(&c)
}

// runReceiver is the main function of the child.
func runReceiver(args []string) error {
	flags := flag.NewFlagSet(receiverCommand, flag.ContinueOnError)
	listen := flags.String("listen", "", "address")
	events := flags.Int("events", 0, "how many are to come")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: *listen, Handler: newHook(*events).handler(), ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// hook checks each request when it arrives: an event must not arrive before the previous one of its aggregate was answered.
type hook struct {
	mu    sync.Mutex
	tally *tally
	busy  map[string]bool // aggregates with an event that has arrived and was not answered yet
	err   error
}

func newHook(events int) *hook {
	return &hook{tally: newTally(events), busy: make(map[string]bool)}
}

func (h *hook) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /events", h.receive)
	mux.HandleFunc("GET /counts", h.tell)
	return mux
}

func (h *hook) receive(w http.ResponseWriter, r *http.Request) {
	until := time.Now().Add(answerTime)
	payload, err := io.ReadAll(r.Body)
	if err != nil {
		h.fail(fmt.Errorf("read a request: %w", err))
		return
	}
	n, err := number(payload)
	if err != nil {
		h.fail(err)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	aggregate := aggregateOf(n) // the body is the payload alone
	h.begin(aggregate, payload)
	time.Sleep(time.Until(until))
	h.mu.Lock()
	delete(h.busy, aggregate)
	h.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (h *hook) begin(aggregate string, payload []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.busy[aggregate] {
		h.tally.misordered++
	}
	h.busy[aggregate] = true
	if err := h.tally.add(aggregate, payload); err != nil && h.err == nil {
		h.err = err
	}
}

func (h *hook) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
	}
}

// tell answers a request for the counts.
func (h *hook) tell(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		http.Error(w, h.err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(h.tally.counts()) // the asker notices what is cut off
}
