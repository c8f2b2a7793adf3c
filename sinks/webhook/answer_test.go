package webhook

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// TestAnswers: what a receiver says about a refusal goes with the error, and is no part of its text.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"refusal":        {422, `{"error": "no such currency"}`, `{"error": "no such currency"}`},
		"once more":      {500, "<h1>Oops</h1>\n", "<h1>Oops</h1>"},
		"away":           {503, "back soon", "back soon"},
		"redirect":       {302, "over there", "over there"},
		"missing":        {404, "nothing here", "nothing here"},
		"accepted":       {200, "thanks", ""},
		"no body":        {400, "", ""},
		"binary":         {400, "\x00\xff\x1b[2J\u202e", "\ufffd\ufffd\ufffd[2J\ufffd"},
		"long":           {400, strings.Repeat("x", 100_000), strings.Repeat("x", sinks.MaxAnswer)},
		"long, of runes": {400, strings.Repeat("日", 2000), strings.Repeat("日", sinks.MaxAnswer/3)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := startReceiver(t, func(w *answer, _ *http.Request, _ got) {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			errs := deliver(t, newSink(t, Config{URL: rec.URL}), batchOf("a/1"))
			var err error
			if errs != nil {
				err = errs[0]
			}
			if got := sinks.Answer(err); got != c.want || !utf8.ValidString(got) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if c.want != "" && strings.Contains(err.Error(), c.want) {
				t.Errorf("the error tells the answer: %v", err)
			}
		})
	}
}

// TestEndlessAnswers: of an answer that does not end its beginning is kept, without waiting for more.
func TestEndlessAnswers(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, func(w *answer, r *http.Request, g got) {
		w.WriteHeader(http.StatusInternalServerError)
		_, err := io.WriteString(w, "it began")
		_ = http.NewResponseController(w).Flush() // or the connection is gone
		for g.id() == "endless/1" && err == nil {
			_, err = io.WriteString(w, " and went on")
		}
		<-r.Context().Done()
	})
	s := newSink(t, Config{URL: rec.URL})
	began := time.Now()
	errs := deliver(t, s, batchOf("endless/1", "slow/1"))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	expectErrors(t, errs, errRefused, errRefused)
	for _, err := range errs {
		if !strings.HasPrefix(sinks.Answer(err), "it began") {
			t.Errorf("answer %q", sinks.Answer(err))
		}
	}
}

// TestAnswersTellNoSecrets: whatever a receiver quotes of a request, the sink's secrets and the payload do not come back.
func TestAnswersTellNoSecrets(t *testing.T) {
	t.Parallel()
	quote := map[string]func(string) string{
		"plain": func(s string) string { return s },
		"JSON":  func(s string) string { text, _ := json.Marshal(s); return string(text) },
		"HTML":  html.EscapeString,
		"query": url.QueryEscape,
		"path":  url.PathEscape,
		"log":   func(s string) string { return fmt.Sprintf("%q", s) },
	}
	for name, quoted := range quote {
		for _, fill := range []int{0, sinks.MaxAnswer - 20, maxQuoted - 20, maxQuoted - 6} {
			rec := startReceiver(t, func(w *answer, r *http.Request, g got) {
				w.WriteHeader(http.StatusBadRequest)
				fmt.Fprint(w, strings.Repeat("x", fill))
				_, password, _ := r.BasicAuth()
				for _, text := range []string{
					r.Header.Get("X-Key"), r.Header.Get("Authorization"), password, r.URL.String(), r.URL.Path, r.URL.RawQuery, r.URL.Query().Get("token"),
					string(g.body), "http://" + r.Host + r.URL.String(),
				} {
					fmt.Fprintf(w, " at %s,", quoted(text))
				}
			})
			s := newSink(t, Config{
				URL: rec.URL + "/hooks/" + canary + "?token=" + canary + "-token", Body: bodyRaw, Topics: sinks.SeveralTopics,
				Headers: map[string]string{"X-Key": `a"` + canary + "<é", "Authorization": "Basic dXNlcjpjYW5hcnkgcGFzcw=="}, // user:canary pass
			})
			batch := batchOf("a/1", "b/1")
			batch[1].Topic = rec.URL + "/other/" + canary + "/b?token=" + canary
			for _, err := range deliver(t, s, batch) {
				got := sinks.Answer(err)
				if strings.Contains(got, canary) || strings.Contains(got, "dXNlcjpj") || strings.HasSuffix(got, canary[:4]) || fill == 0 && !strings.Contains(got, "***") {
					t.Errorf("%s, after %d bytes: %s", name, fill, strings.Trim(got, "x"))
				}
			}
		}
	}
}

// TestNothingInnocentIsMasked: the rest of an answer is left as it is.
func TestNothingInnocentIsMasked(t *testing.T) {
	t.Parallel()
	const said = `{"code": 1, "error": "aggregate a of Order: OrderPlaced is not known to partner.example"}`
	rec := startReceiver(t, func(w *answer, _ *http.Request, _ got) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, said)
	})
	s := newSink(t, Config{URL: rec.URL + "/", Headers: map[string]string{"X-Shop": "1"}, Secrets: []string{"s"}})
	if errs := deliver(t, s, batchOf("a/1")); len(errs) != 1 || sinks.Answer(errs[0]) != said {
		t.Errorf("got %v: %q", errs, sinks.Answer(errs[0]))
	}
}
