package monitoring

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// These bound what an idle or hostile client can hold.
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second // requests have no body worth mentioning
	idleTimeout       = 2 * time.Minute  // longer than a scrape interval
	maxHeaderBytes    = 16 << 10
	maxConnections    = 64
	// writeTimeout is longer than any scrape.
	writeTimeout = 30 * time.Second
	// shutdownTimeout is how long a scrape may still take when the process ends.
	shutdownTimeout = 3 * time.Second
)

// Server is where and how metrics and health are served. Hosts may be empty.
type Server struct {
	Listen string // host:port
	// Hosts are further names that a request may have in its header Host.
	Hosts   []string
	Handler http.Handler
	Logger  *slog.Logger
}

// Serve answers until ctx ends, then lets running requests finish for a moment. It returns nil after ctx has
// ended, and an error when the address cannot be listened on or the server fails.
func (s Server) Serve(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.Listen)
	if err != nil {
		return fmt.Errorf("listen for http: %w; set http.listen, or OUTBOX_LISTEN, to an address that is free", err)
	}
	return s.serveOn(ctx, l)
}

// serveOn is Serve on a listener, which it closes.
func (s Server) serveOn(ctx context.Context, l net.Listener) error {
	handler := s.Handler
	if isLoopback(l.Addr()) || len(s.Hosts) > 0 {
		handler = s.checkHost(handler)
	}
	if !isLoopback(l.Addr()) {
		s.Logger.Warn("metrics and health are readable by everybody who reaches this address; let only the monitoring reach it", "listen", l.Addr().String())
	}
	open := &connections{most: maxConnections}
	srv := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnState:         open.change,
		ErrorLog:          slog.NewLogLogger(s.Logger.Handler(), slog.LevelWarn),
	}
	// Serve returns as soon as Shutdown is called, so its end is awaited here as well as Serve's own.
	stopped := make(chan error, 1)
	release := context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err := srv.Shutdown(last)
		if err != nil {
			err = srv.Close() // it ends the requests that still run after shutdownTimeout
		}
		stopped <- err
	})
	err := srv.Serve(l)
	if release() {
		return fmt.Errorf("serve http: %w", err)
	}
	return <-stopped
}

// Advertised returns what other processes are told of an address to listen on: host:port, or :port for all addresses of this host. It is
// empty if nothing listens, or on a port that is not known before.
func Advertised(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return ""
	}
	number, err := net.DefaultResolver.LookupPort(context.Background(), "tcp", port) // a name, or a number
	if err != nil || number == 0 {
		return ""
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = ""
	}
	return net.JoinHostPort(host, strconv.Itoa(number))
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// checkHost answers requests that are meant for this server. A page that a browser has from elsewhere can make its own name
// lead to a loopback address (DNS rebinding), and would read what is served here; its requests have that name as Host.
func (s Server) checkHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.answers(r.Context(), hostOf(r.Host)) {
			http.Error(w, "this server does not answer for that Host; name it in http.hosts (OUTBOX_HTTP_HOSTS)", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// answers reports whether host means this server: it is a name of this machine for itself, a configured name, or the very address
// that the client has connected to. An address in Host is safe: DNS rebinding needs a name.
func (s Server) answers(ctx context.Context, host string) bool {
	if local, ok := ctx.Value(http.LocalAddrContextKey).(*net.TCPAddr); ok && host == local.IP.String() {
		return true
	}
	return host == "localhost" || host == "127.0.0.1" || host == "::1" ||
		slices.ContainsFunc(s.Hosts, func(h string) bool { return host == hostOf(h) })
}

// hostOf is the name or address in a Host header, without port and brackets, in small letters.
func hostOf(header string) string {
	host, _, err := net.SplitHostPort(header)
	if err != nil { // without a port
		host = strings.TrimSuffix(strings.TrimPrefix(header, "["), "]")
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// connections bounds how many there are. A new one is never refused, because it may be a scrape: clients that only hold
// connections must not use up the process's file descriptors, nor keep a scrape out. Instead the one is closed that has been
// without a request for the longest time. Where all others have sent a request, it is the one whose request is the oldest: its
// client withholds the body, or does not read the answer. A scrape takes milliseconds.
type connections struct {
	most int

	mu      sync.Mutex
	open    int
	waiting []net.Conn // without a request, longest first
	busy    []net.Conn // with a request, oldest first
}

// change is called by net/http when a connection's state changes.
func (c *connections) change(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	same := func(other net.Conn) bool { return other == conn }
	c.waiting = slices.DeleteFunc(c.waiting, same)
	c.busy = slices.DeleteFunc(c.busy, same)
	switch state {
	case http.StateNew:
		c.open++
		if c.open > c.most {
			c.closeOne()
		}
		c.waiting = append(c.waiting, conn)
	case http.StateIdle:
		c.waiting = append(c.waiting, conn)
	case http.StateActive:
		c.busy = append(c.busy, conn)
	case http.StateClosed, http.StateHijacked:
		c.open--
	}
}

// closeOne closes a connection to make room. net/http notices that, and reports StateClosed.
func (c *connections) closeOne() {
	from := &c.waiting
	if len(c.waiting) == 0 {
		from = &c.busy
	}
	if len(*from) > 0 { // else all of them are about to end
		_ = (*from)[0].Close()
		*from = (*from)[1:]
	}
}
