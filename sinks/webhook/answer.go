package webhook

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// maxAnswer is the most bytes that are read of the headers of an answer, and of its body. If an answer is longer, the
	// connection is closed.
	maxAnswer = 64 << 10
	// maxAnswerTime is how long the body of an answer is read after its headers have arrived.
	maxAnswerTime = time.Second
	// maxQuoted is how many bytes of a refusal's body are looked at. It is more than sinks.MaxAnswer, because secrets are taken
	// out before it is cut.
	maxQuoted = 4 * sinks.MaxAnswer
	// minSecret is the length from which on a text is taken out of an answer. A shorter one is in many an innocent word.
	minSecret = 4
	// minToken is the length from which on a single segment of the sink's own URL counts as a secret.
	minToken = 16
)

// readBody reads the body of an answer, so that the connection can be used again, and returns its beginning. If something goes
// wrong, that only costs the connection, because the status decides. The body of an answer with status 101 is not read: it
// never ends, not even when ctx does.
func readBody(answer *http.Response) []byte {
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusSwitchingProtocols || answer.Body == http.NoBody {
		return nil
	}
	late := time.AfterFunc(maxAnswerTime, func() { _ = answer.Body.Close() }) // closes the connection while it is read
	defer late.Stop()
	if answer.StatusCode >= 200 && answer.StatusCode < 300 {
		_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer)
		return nil
	}
	var begin bytes.Buffer
	if n, err := io.CopyN(&begin, answer.Body, maxQuoted); err == nil {
		_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer-n)
	}
	return begin.Bytes()
}

// secretsOf returns the texts of a configuration that must not come back with an answer.
func secretsOf(c *Config, s *settings) []string {
	all := urlSecrets(s.url)
	for segment := range strings.SplitSeq(s.url.Path, "/") {
		if len(segment) >= minToken {
			all = append(all, segment)
		}
	}
	for _, value := range c.Headers {
		all = append(all, value)
		scheme, credentials, _ := strings.Cut(value, " ")
		all = append(all, credentials)
		if decoded, err := base64.StdEncoding.DecodeString(credentials); err == nil && strings.EqualFold(scheme, "basic") {
			_, password, _ := strings.Cut(string(decoded), ":")
			all = append(all, string(decoded), password)
		}
	}
	for i, secret := range c.Secrets {
		all = append(all, secret, strings.TrimPrefix(secret, secretPrefix), string(s.keys[i]))
	}
	return spellings(all)
}

// urlSecrets returns those parts of a URL that may be secret: its path, and its query with each value there.
func urlSecrets(u *url.URL) []string {
	all := []string{u.String(), u.RequestURI(), u.EscapedPath(), u.Path, u.RawQuery}
	for _, values := range u.Query() {
		all = append(all, values...)
	}
	return all
}

// spellings returns texts together with the forms in which a receiver may quote them: within JSON, HTML and URLs.
func spellings(texts []string) []string {
	var all []string
	for _, text := range texts {
		text = text[:min(len(text), maxQuoted)]
		if len(text) < minSecret {
			continue
		}
		escaped, _ := json.Marshal(text) // a string never fails
		var plain bytes.Buffer
		encoder := json.NewEncoder(&plain)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(text)
		all = append(all, text, strings.Trim(string(escaped), `"`), strings.Trim(plain.String(), "\"\n"),
			html.EscapeString(text), url.QueryEscape(text), url.PathEscape(text))
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return slices.Compact(all)
}

// masked returns what a receiver has answered, without the sink's secrets, the URL of the request and the payload. It cannot
// know them where the receiver changes them.
func (s *Sink) masked(answer []byte, request *http.Request, payload []byte) string {
	if len(answer) == 0 {
		return ""
	}
	secrets := slices.Concat(s.secrets, spellings(append(urlSecrets(request.URL), string(payload[:min(len(payload), maxQuoted)]))))
	slices.SortStableFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	pairs := make([]string, 0, 2*len(secrets)) // at each place the first that fits is taken, which is the longest
	for _, secret := range secrets {
		pairs = append(pairs, secret, "***")
	}
	text := strings.NewReplacer(pairs...).Replace(string(answer))
	// At the end of what was read there may be the beginning of a secret.
	longest := 0
	for _, secret := range secrets {
		for n := min(len(secret)-1, len(text)); n >= max(minSecret, longest+1); n-- {
			if strings.HasSuffix(text, secret[:n]) {
				longest = n
				break
			}
		}
	}
	return text[:len(text)-longest]
}
