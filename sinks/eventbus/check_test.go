package eventbus

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// checkOf checks subjects, soon. It returns what was found, and why the destination cannot be used, which is no secret.
func checkOf(t testing.TB, c Config, subjects ...string) ([]sinks.TopicCheck, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	found, err := newSink(t, c).Check(ctx, subjects)
	if ctx.Err() != nil {
		t.Error("Check lasted as long as its deadline")
	}
	text := fmt.Sprint(err)
	for _, f := range found {
		text += fmt.Sprint(f)
	}
	if strings.Contains(text, "canary") {
		t.Errorf("tells a secret: %s", text)
	}
	return found, err
}

// expectAway checks that the destination as a whole cannot be used, and whether it is the login that was refused.
func expectAway(t testing.TB, c Config, want, login string) {
	t.Helper()
	_, err := checkOf(t, c, "orders")
	if !errors.Is(err, sinks.ErrUnavailable) || !strings.Contains(err.Error(), want) {
		t.Errorf("want ErrUnavailable with %q, got %v", want, err)
	}
	if sinks.IsRefusedLogin(err) != (login == loginRefused) {
		t.Errorf("the login was %s: %v", login, err)
	}
}

// Values of the parameter login of expectAway.
const (
	loginAccepted = "accepted"
	loginRefused  = "refused"
)

// TestCheckRights: a user who may not ask for streams is not told that they are missing.
func TestCheckRights(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{Config: `authorization { users = [
		{user: admin, password: canary}
		{user: narrow, password: canary, permissions: {publish: "outbox.event.>", subscribe: "_INBOX.>"}}
		{user: deaf, password: canary, permissions: {publish: ">", subscribe: "acks.>"}}
		{user: asking, password: canary, permissions: {publish: ["outbox.>", "$JS.API.INFO", "$JS.API.STREAM.NAMES"], subscribe: "_INBOX.>"}}
	]}`})
	url := func(user string) string { return "nats://" + user + ":canary@" + n.Addr() }
	stream := newStream(t, url("admin"), jetstream.StreamConfig{})
	for user, knows := range map[string]bool{"admin": true, "asking": true, "narrow": false} {
		found, err := checkOf(t, Config{URL: url(user)}, stream.subject, "outbox.event.missing")
		switch {
		case err != nil:
			t.Errorf("%s: %v", user, err)
		case found[0].Err != nil || errors.Is(found[1].Err, errNoStream) != knows:
			t.Errorf("%s: %v", user, found)
		case (found[1].Remedy != "") != (user == "admin"): // the others may not ask about the stream that the command would make
			t.Errorf("%s: the remedy is %q", user, found[1].Remedy)
		}
	}
	expectAway(t, Config{URL: url("deaf")}, "inbox prefix", loginAccepted)
	if _, err := checkOf(t, Config{URL: url("deaf"), InboxPrefix: "acks"}, stream.subject); err != nil {
		t.Error(err)
	}
	expectAway(t, Config{URL: "nats://admin:canary-2@" + n.Addr()}, "uthorization", loginRefused)
	if ids := stream.ids(); len(ids) != 0 {
		t.Errorf("the checks have sent %q", ids)
	}
}

// TestCheckWithoutJetStream: a server that speaks NATS alone takes no event durably.
func TestCheckWithoutJetStream(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{Config: `accounts { PLAIN { users = [{user: plain, password: canary}] } }`})
	expectAway(t, Config{URL: "nats://plain:canary@" + n.Addr()}, "JetStream", loginAccepted)
}

// TestCheckOfIllegalSubjects: no stream can take them.
func TestCheckOfIllegalSubjects(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	found, err := checkOf(t, Config{URL: n.URL()}, "a b", "$JS.API.STREAM.DELETE.x", "a..b")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if !errors.Is(f.Err, sinks.ErrPermanent) || f.Remedy != "" {
			t.Errorf("%q: %v, remedy %q", f.Topic, f.Err, f.Remedy)
		}
	}
}

// run does what a remedy would do, which was copied into a shell. The tests do not need the command nats.
func run(t testing.TB, n *servers.NATS, remedy string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `nats() { printf '%s\n' "$@"; }; `+remedy).Output()
	if err != nil {
		t.Fatalf("%s: %v", remedy, err)
	}
	words := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	var c jetstream.StreamConfig
	for i := slices.Index(words, "--subjects"); i >= 0 && i+1 < len(words); i += 2 {
		c.Subjects = append(c.Subjects, words[i+1])
	}
	js, err := jetstream.New(connect(t, n.URL()))
	if err != nil {
		t.Fatal(err)
	}
	switch begin := words[:6]; {
	case slices.Equal(begin[:4], []string{"--server", n.URL(), "stream", "add"}) && begin[5] == "--defaults":
		c.Name = begin[4]
		_, err = js.CreateStream(t.Context(), c)
	case slices.Equal(begin[:4], []string{"--server", n.URL(), "stream", "edit"}) && begin[5] == "--force":
		c.Name = begin[4]
		_, err = js.UpdateStream(t.Context(), c)
	default:
		t.Fatalf("unexpected remedy: %s", remedy)
	}
	if err != nil {
		t.Errorf("%s: %v", remedy, err)
	}
}

// TestCheckRemedies: one command makes all subjects be taken, and those that were taken before still are.
func TestCheckRemedies(t *testing.T) {
	t.Parallel()
	for name, stream := range map[string]string{"a stream is named": "events", "none is": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startServer(t, servers.NATSOptions{})
			c := Config{URL: strings.Replace(n.URL(), "://", "://user:canary@", 1), Stream: stream}
			subjects := []string{"outbox.event.order", "outbox.event.it's"}
			for range 2 {
				found, err := checkOf(t, c, subjects...)
				if err != nil {
					t.Fatal(err)
				}
				last := found[len(found)-1]
				if !errors.Is(last.Err, errNoStream) {
					t.Fatalf("no stream takes it, and Check says: %v", last.Err)
				}
				run(t, n, last.Remedy)
				found, err = checkOf(t, c, subjects...)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range found {
					if f.Err != nil || f.Remedy != "" {
						t.Errorf("after the remedy: %v, remedy %q", f.Err, f.Remedy)
					}
				}
				subjects = append(subjects, "outbox.event.refund")
			}
		})
	}
}

// TestCheckFindsAnotherStream: what the configuration allows takes nothing there, and no command of ours could mend that.
func TestCheckFindsAnotherStream(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	found, err := checkOf(t, Config{URL: n.URL(), Stream: "events"}, stream.subject)
	if err != nil {
		t.Fatal(err)
	}
	if f := found[0]; !errors.Is(f.Err, errOther) || !strings.Contains(f.Err.Error(), stream.name) || f.Remedy != "" {
		t.Errorf("%v, remedy %q", f.Err, f.Remedy)
	}
}
