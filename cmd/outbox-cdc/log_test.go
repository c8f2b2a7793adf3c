package main

import (
	"bytes"
	"context"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
)

// A receiver may send back what it was sent, behind its answer. net/http then quotes that in the standard logger.
// This test is not parallel, because there is only one such logger.
func TestWhatAReceiverSendsIsNotLogged(t *testing.T) {
	defer log.SetOutput(log.Writer())
	defer log.SetFlags(log.Flags())
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		takeLibraryLog(slog.New(slog.NewTextHandler(&out, nil)))
		ours, theirs := net.Pipe()
		transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return ours, nil }}
		go func() {
			_, _ = theirs.Read(make([]byte, 1<<16))
			_, _ = io.WriteString(theirs, "HTTP/1.1 304 Not Modified\r\n\r\ncanary")
		}()
		res, err := transport.RoundTrip(httptest.NewRequest(http.MethodGet, "http://receiver.example/", http.NoBody))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		synctest.Wait()
		if got := out.String(); strings.Contains(got, "canary") || !strings.Contains(got, "more than the answer") {
			t.Errorf("logged: %s", got)
		}
	})
}

func TestWhatLibrariesLogIsKept(t *testing.T) {
	var out bytes.Buffer
	l := libraryLog{slog.New(slog.NewTextHandler(&out, nil))}
	if n, err := l.Write([]byte("http: something\n")); n != len("http: something\n") || err != nil {
		t.Errorf("Write: %d, %v", n, err)
	}
	if got := out.String(); !strings.Contains(got, `text="http: something"`) {
		t.Errorf("logged: %s", got)
	}
}
