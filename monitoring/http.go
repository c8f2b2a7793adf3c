package monitoring

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// readHeaderTimeout and maxHeaderBytes bound what an idle or hostile client can hold.
	readHeaderTimeout = 5 * time.Second
	maxHeaderBytes    = 16 << 10
	// writeTimeout is longer than any scrape.
	writeTimeout = 30 * time.Second
	// shutdownTimeout is how long a scrape may still take when the process ends.
	shutdownTimeout = 3 * time.Second
)

// Handler serves /metrics from reg (not at all where reg is nil), /livez and /readyz from h. All are read only.
//
// /livez answers 200 as long as the process can answer: a sink, a server or a slot that is away is no reason to be
// killed, because a restart would not bring it back. /readyz answers 200 when every component is ok, a standby's
// too, and 503 otherwise. Both say the same in their body.
func Handler(reg *prometheus.Registry, h *Health) http.Handler {
	mux := http.NewServeMux()
	if reg != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	}
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeReport(w, http.StatusOK, h.Report())
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := h.Report()
		status := http.StatusOK
		if !r.Ready {
			status = http.StatusServiceUnavailable
		}
		writeReport(w, status, r)
	})
	return mux
}

func writeReport(w http.ResponseWriter, status int, r Report) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(r) // the client may be gone; there is nobody else to tell
}

// Serve answers on addr until ctx ends, then lets running requests finish for a moment. It returns nil after ctx has
// ended, and an error when addr cannot be listened on or the server fails.
func Serve(ctx context.Context, addr string, handler http.Handler) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for http: %w; set http.listen, or OUTBOX_LISTEN, to an address that is free", err)
	}
	return serve(ctx, l, handler)
}

func serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	srv := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		WriteTimeout:      writeTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
	// Serve returns as soon as Shutdown is called, so its end is awaited here as well as Serve's own.
	stopped := make(chan error, 1)
	release := context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err := srv.Shutdown(last)
		if err != nil {
			err = srv.Close() // who still reads after the grace period is cut off
		}
		stopped <- err
	})
	err := srv.Serve(l)
	if release() {
		return fmt.Errorf("serve http: %w", err)
	}
	return <-stopped
}
