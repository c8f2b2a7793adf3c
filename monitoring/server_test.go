package monitoring

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

func TestServeFinishesRunningRequests(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		// Shutdown closes the listener first, so a refused dial shows that this request outlives its beginning.
		for r.Context().Err() == nil {
			c, err := net.DialTimeout("tcp", l.Addr().String(), time.Second)
			if err != nil {
				break
			}
			c.Close()
		}
		_, _ = io.WriteString(w, "complete")
	})
	served := make(chan error, 1)
	go func() { served <- Server{Handler: handler, Logger: quiet}.serveOn(ctx, l) }()

	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "complete" {
		t.Errorf("body = %q, %v", body, err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve = %v, want nil after its context ended", err)
	}
}

func TestServeReportsBusyAddress(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := (Server{Listen: l.Addr().String(), Handler: http.NotFoundHandler(), Logger: quiet}).Serve(t.Context()); err == nil {
		t.Error("no error on an address in use")
	}
}

// serveAt serves on an address of this machine until the test ends, and returns what is logged.
func serveAt(t *testing.T, address string, s Server) (addr string, logged func() string) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	out := &buffer{}
	s.Logger = slog.New(slog.NewJSONHandler(out, nil))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.serveOn(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return "127.0.0.1:" + port, out.text
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var fine = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") })

// ask sends one request on a connection of its own and returns the status.
func ask(t *testing.T, addr, host string) int {
	t.Helper()
	conn := dial(t, addr)
	defer conn.Close()
	return askOn(t, conn, host)
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func askOn(t *testing.T, conn net.Conn, host string) int {
	t.Helper()
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// On a loopback address only its own names are answered: a page from elsewhere must not read what is served here.
func TestHosts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		listen string
		hosts  []string
		host   string
		want   int
	}{
		{"127.0.0.1:0", nil, "localhost", 200},
		{"127.0.0.1:0", nil, "LocalHost.:9640", 200},
		{"127.0.0.1:0", nil, "127.0.0.1:9640", 200},
		{"127.0.0.1:0", nil, "[::1]", 200},
		{"127.0.0.1:0", nil, "[::1]:9640", 200},
		{"127.0.0.1:0", nil, "evil.example", 421},
		{"127.0.0.1:0", nil, "localhost.evil.example:9640", 421},
		{"127.0.0.1:0", nil, "127.0.0.2", 421},
		{"127.0.0.1:0", nil, "", 421},
		{"127.0.0.1:0", []string{"Metrics.Example"}, "metrics.example:80", 200},
		{"127.0.0.1:0", []string{"metrics.example"}, "other.example", 421},
		{"0.0.0.0:0", nil, "any.example", 200},
		{"0.0.0.0:0", []string{"metrics.example"}, "any.example", 421},
		{"0.0.0.0:0", []string{"metrics.example"}, "metrics.example", 200},
		{"0.0.0.0:0", []string{"metrics.example"}, "127.0.0.1", 200},
	} {
		addr, _ := serveAt(t, c.listen, Server{Hosts: c.hosts, Handler: fine})
		if got := ask(t, addr, c.host); got != c.want {
			t.Errorf("%s, hosts %q, Host %q: %d, want %d", c.listen, c.hosts, c.host, got, c.want)
		}
	}
}

func TestWarnsBeyondLoopback(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]int{"127.0.0.1:0": 0, "[::1]:0": 0, "0.0.0.0:0": 1, ":0": 1} {
		addr, logged := serveAt(t, listen, Server{Handler: fine})
		if listen != "[::1]:0" {
			ask(t, addr, "localhost")
		}
		if got := strings.Count(logged(), `"level":"WARN"`); got != want {
			t.Errorf("%s: %d warnings, want %d: %s", listen, got, want, logged())
		}
	}
}

// Clients that hold connections keep neither a scrape out nor file descriptors: those that have waited longest are closed.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	addr, _ := serveAt(t, "127.0.0.1:0", Server{Handler: fine})
	const flood = 4 * maxConnections
	var conns []net.Conn
	for i := range flood {
		conn := dial(t, addr)
		if i%2 == 0 { // some have been answered, and are kept alive
			if got := askOn(t, conn, "localhost"); got != 200 {
				t.Fatalf("connection %d: %d", i, got)
			}
		}
		conns = append(conns, conn)
	}
	if got := ask(t, addr, "localhost"); got != 200 {
		t.Fatalf("a scrape got %d", got)
	}
	// Each of the older ones was closed for a later one, or this waits for the deadline. (Two that came together may have changed
	// places.)
	for i, conn := range conns[:flood/2] {
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Fatalf("connection %d was left open: %v", i, err)
		}
	}
}

// Clients whose requests never end do not keep a scrape out either: the oldest requests give way.
func TestConnectionsThatStayBusyGiveWay(t *testing.T) {
	t.Parallel()
	large := bytes.Repeat([]byte("x"), 8<<20) // more than the sockets' buffers take
	for name, request := range map[string]string{
		"body withheld": "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
		"not read":      "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reached := make(chan struct{}, 2*maxConnections)
			addr, _ := serveAt(t, "127.0.0.1:0", Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				reached <- struct{}{}
				if r.URL.Path == "/large" {
					_, _ = w.Write(large)
				}
			})})
			for range maxConnections {
				if _, err := io.WriteString(dial(t, addr), request); err != nil {
					t.Fatal(err)
				}
			}
			for range maxConnections {
				<-reached
			}
			if got := ask(t, addr, "localhost"); got != 200 {
				t.Errorf("a scrape got %d", got)
			}
		})
	}
}

// What net/http has to say is logged as everything else is.
func TestServerErrorsAreLogged(t *testing.T) {
	t.Parallel()
	addr, logged := serveAt(t, "127.0.0.1:0", Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("of a test") })})
	conn := dial(t, addr)
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Fatal(err)
	}
	if text := logged(); !strings.Contains(text, `"level":"WARN"`) || !strings.Contains(text, "of a test") {
		t.Errorf("logged: %s", text)
	}
}

// Others are told of an address that does not depend on who asks, and of no port that nobody knows.
func TestAdvertised(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]string{
		"": "", ":9640": ":9640", "0.0.0.0:9640": ":9640", "[::]:9640": ":9640", "127.0.0.1:9640": "127.0.0.1:9640", "localhost:9640": "localhost:9640",
		"[::1]:9640": "[::1]:9640", "10.0.0.1:http": "10.0.0.1:80", "127.0.0.1:0": "", "nonsense": "",
	} {
		if got := Advertised(listen); got != want {
			t.Errorf("%q: %q, want %q", listen, got, want)
		}
	}
}
