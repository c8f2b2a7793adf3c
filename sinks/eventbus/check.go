package eventbus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/pyairtable-compose/outbox-cdc/internal/shell"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	namesSubject       = "$JS.API.STREAM.NAMES"
	streamInfoSubject  = "$JS.API.STREAM.INFO."
	codeStreamNotFound = 10059
	// suggestedStream is the name in the remedy for missing streams if the configuration names none.
	suggestedStream = "outbox"
)

var (
	errMayNotAsk = errors.New("no right to ask for streams")
	errOther     = errors.New("another stream than the configured one takes it")
)

// Check implements sinks.Checker. It makes a connection of its own, and asks JetStream which streams take the subjects. If the user
// has no right to ask that, only connection and login are checked. Whether the user may publish shows only when a message is sent.
func (s *Sink) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", sinks.ErrUnavailable, context.Cause(ctx))
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	client, err := s.connect(ctx, end)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: not connected: %w", sinks.ErrUnavailable, markLogin(err))
	}
	defer client.Close()
	q := questions{client: client, sink: s}
	found, err := q.check(ctx, topics)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", sinks.ErrUnavailable, err)
	}
	return found, nil
}

// dialFunc is a function that dials for the client.
type dialFunc func(network, address string) (net.Conn, error)

// Dial implements nats.CustomDialer.
func (f dialFunc) Dial(network, address string) (net.Conn, error) { return f(network, address) }

// connect makes a connection that is closed when ctx ends, which also ends what waits for the server. If the user may not do what a
// check needs, it ends ctx with the reason.
func (s *Sink) connect(ctx context.Context, end context.CancelCauseFunc) (*nats.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	options := slices.Concat(s.options, []nats.Option{
		nats.RetryOnFailedConnect(false), nats.NoReconnect(), nats.SkipHostLookup(),
		nats.SetCustomDialer(dialFunc(func(network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err == nil {
				context.AfterFunc(ctx, func() { conn.Close() })
			}
			return conn, err
		})),
		nats.CustomInboxPrefix(strings.TrimSuffix(s.inbox, ".")),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			switch {
			case !errors.Is(err, nats.ErrPermissionViolation):
			case strings.Contains(err.Error(), "Subscription"):
				end(errNoInbox(s.inbox))
			default:
				end(errMayNotAsk)
			}
		}),
	})
	return nats.Connect(s.url, options...)
}

// questions are what one Check asks JetStream.
type questions struct {
	client *nats.Conn
	sink   *Sink
}

func (q *questions) check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	found := make([]sinks.TopicCheck, len(topics))
	var missing []string
	for i, topic := range topics {
		found[i] = sinks.TopicCheck{Kind: "subject", Topic: topic}
		if err := checkSubject(topic); err != nil {
			found[i].Err = fmt.Errorf("%w: %w", sinks.ErrPermanent, err)
		}
	}
	err := q.ask(ctx, infoSubject, nil, nil)
	for i := range found {
		if err != nil {
			break
		}
		f := &found[i]
		if f.Err != nil {
			continue
		}
		var streams []string
		if streams, err = q.streamsOf(ctx, f.Topic); err != nil {
			break
		}
		var why error
		switch configured := q.sink.stream; {
		case len(streams) == 0:
			why, missing = errNoStream, append(missing, f.Topic)
		case configured != "" && !slices.Contains(streams, configured):
			why = fmt.Errorf("%w: it is %s", errOther, strings.Join(streams, ", "))
		default:
			continue
		}
		f.Err = fmt.Errorf("%w: subject %q: %w", q.sink.topics.Unavailable(), f.Topic, why)
	}
	if err != nil && !errors.Is(err, errMayNotAsk) {
		return nil, err
	}
	if len(missing) > 0 {
		remedy := q.remedy(ctx, missing)
		for i := range found {
			if errors.Is(found[i].Err, errNoStream) {
				found[i].Remedy = remedy
			}
		}
	}
	return found, nil
}

// ask sends a request to JetStream, and reads the answer into answer. Its error concerns JetStream as a whole.
func (q *questions) ask(ctx context.Context, subject string, request []byte, answer any) error {
	reply, err := q.client.RequestWithContext(ctx, subject, request)
	switch {
	case ctx.Err() != nil:
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("JetStream does not answer: %w", context.Cause(ctx))
		}
		return context.Cause(ctx)
	case errors.Is(err, nats.ErrNoResponders):
		return errNotEnabled
	case err != nil:
		return markLogin(err)
	}
	if err := judgeJetStream(reply); err != nil || answer == nil {
		return err
	}
	if err := json.Unmarshal(reply.Data, answer); err != nil {
		return fmt.Errorf("the answer to %s is not JetStream's", subject)
	}
	return nil
}

// streamsOf returns the streams that take a subject.
func (q *questions) streamsOf(ctx context.Context, subject string) ([]string, error) {
	request, err := json.Marshal(map[string]string{"subject": subject})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Streams []string  `json:"streams"`
		Error   *apiError `json:"error"`
	}
	if err := q.ask(ctx, namesSubject, request, &answer); err != nil {
		return nil, err
	}
	if answer.Error != nil {
		return nil, errors.New(answer.Error.words())
	}
	return answer.Streams, nil
}

// remedy returns a command that makes a stream for all the subjects, or adds them to the one that is there. It is empty if that
// cannot be found out.
func (q *questions) remedy(ctx context.Context, subjects []string) string {
	name := cmp.Or(q.sink.stream, suggestedStream)
	var answer struct {
		Error  *apiError `json:"error"`
		Config struct {
			Subjects []string `json:"subjects"`
		} `json:"config"`
	}
	if q.ask(ctx, streamInfoSubject+name, nil, &answer) != nil {
		return ""
	}
	words := []string{"nats", "--server", Config{URL: q.sink.url}.String(), "stream"}
	switch {
	case answer.Error == nil:
		words = append(words, "edit", name, "--force")
		subjects = append(answer.Config.Subjects, subjects...)
	case answer.Error.ErrCode == codeStreamNotFound:
		words = append(words, "add", name, "--defaults")
	default:
		return ""
	}
	for i := range words {
		words[i] = shell.Quote(words[i])
	}
	for _, subject := range subjects {
		words = append(words, "--subjects", shell.Quote(subject))
	}
	return strings.Join(words, " ")
}

// Check implements sinks.Checker. The bus is always there, unless handlers that do not return have taken all its places.
func (b *Bus) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%w: %w", sinks.ErrUnavailable, context.Cause(ctx))
	case b.isAway():
		return nil, fmt.Errorf("%w: %w", sinks.ErrUnavailable, errAllBusy)
	}
	found := make([]sinks.TopicCheck, len(topics))
	for i, topic := range topics {
		found[i] = sinks.TopicCheck{Kind: "topic", Topic: topic}
	}
	return found, nil
}
