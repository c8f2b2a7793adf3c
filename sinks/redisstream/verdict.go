package redisstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// answer says what became of a transaction.
type answer struct {
	executed bool  // it was executed, and each holds what became of each entry
	err      error // otherwise: why nothing of it was accepted, as far as that is known
	each     []error
	wait     time.Duration // it was not sent, because its node was found away, and may be asked again after this time

	unknown  bool // it may have been accepted all the same
	timedOut bool
	broken   bool // the connection cannot be used any more, or leads to the wrong server
	tooLarge bool // its only message is too large

	moved  string // the node of the cluster that has the stream, if it was refused because it is another
	asking bool   // that node is only about to get the stream, so ASKING must be sent first
}

// refusal is the text of an error of Redis.
type refusal string

func (r refusal) Error() string { return string(r) }

// code returns the first word of the error, which names its kind. "ERR" stands for all kinds without a code of their own.
func (r refusal) code() string {
	code, _, _ := strings.Cut(string(r), " ")
	return code
}

// refusalOf reads an error reply. It cuts off what follows "with args", because that is quoted from the command.
func refusalOf(line []byte) refusal {
	text, _, _ := strings.Cut(string(line[1:]), ", with args")
	if len(text) > 200 {
		text = text[:200]
	}
	return refusal(strings.TrimRight(text, "\r\n"))
}

// scope says what an error concerns.
type scope uint8

const (
	ofMessage scope = iota // this message, as far as we know
	ofStream               // all messages of its stream, while the server goes on with others
	ofNode                 // all messages that this server would get
)

// streamRefusals holds the beginnings of errors that concern one stream. A person, or time, has to mend them. WRONGTYPE is one of
// them: the key of the stream holds something else. That does not depend on the event, concerns all events of the stream, and
// ends when the key is removed. It is like a Kafka topic to which we have no right.
//
// What concerns a slot of a cluster is here too: a slot that no node has, or that is handed from one node to the other.
var streamRefusals = []string{
	"WRONGTYPE ", "CLUSTERDOWN Hash slot not served", "TRYAGAIN ", "MOVED ", "ASK ", "CROSSSLOT ", "ERR The stream has exhausted",
}

// nodeRefusals holds the beginnings of errors that concern the server, whatever it is asked.
var nodeRefusals = []string{
	"LOADING ", "READONLY ", "OOM ", "MISCONF ", "NOAUTH ", "NOPERM ", "WRONGPASS ", "CLUSTERDOWN ", "MASTERDOWN ", "NOREPLICAS ",
	"BUSY ", "UNKILLABLE ", "DENIED ", "EXECABORT ",
	"ERR unknown command", "ERR syntax error", "ERR max number of clients",
}

func (r refusal) scope() scope {
	begins := func(text string) bool { return strings.HasPrefix(string(r)+" ", text) }
	switch {
	case slices.ContainsFunc(streamRefusals, begins):
		return ofStream
	case r.code() == "NOPERM" && strings.Contains(string(r), "permissions to access "): // "… to access one of the keys …", "… to access a key"
		return ofStream
	case slices.ContainsFunc(nodeRefusals, begins):
		return ofNode
	}
	return ofMessage
}

// remedies holds, by code, what a person can do.
var remedies = map[string]string{
	wrongType:   "the key holds something else; delete or rename it, or give the sink another topic",
	"NOPERM":    "the user needs +multi +exec +xadd, +select for a database, +cluster and +asking in a cluster, and the key pattern of the streams",
	"NOAUTH":    "set username and password",
	"WRONGPASS": "check username and password; the user may also be off, or not exist (ACL LIST)",
	"MOVED":     "the server is part of a cluster; set addresses",
	"OOM":       "raise maxmemory, or trim the streams with max_len or min_id_age",
}

// refusesLogin reports whether the server has refused user or password, or wants some.
func (r refusal) refusesLogin() bool { return r.code() == "NOAUTH" || r.code() == "WRONGPASS" }

// failure returns the error of a message that was refused by itself in a transaction that was executed.
func (r refusal) failure(stream string) error {
	if strings.HasPrefix(string(r), "ERR Elements are too large") {
		return fmt.Errorf("%w: stream %q: %w", sinks.ErrPermanent, stream, r)
	}
	return fmt.Errorf("stream %q: %w", stream, r)
}

// unavailable returns an error of this class, with the remedy if there is one.
func unavailable(class error, stream string, err error) error {
	return fmt.Errorf("%w: stream %q: %w", class, stream, advised(err))
}

// advised adds to err the remedy if there is one, and the mark of a refused login.
func advised(err error) error {
	r, refused := errors.AsType[refusal](err)
	if !refused {
		return err
	}
	if remedy := remedies[r.code()]; remedy != "" {
		err = fmt.Errorf("%w; %s", err, remedy)
	}
	if r.refusesLogin() {
		err = sinks.RefusedLogin(err)
	}
	return err
}

// scopeOf says what it concerns that nothing of a transaction was accepted, because of err. That is never a single message.
func scopeOf(err error) scope {
	if r, ok := errors.AsType[refusal](err); ok && r.scope() == ofStream {
		return ofStream
	}
	return ofNode
}

// answered reports whether the server has shown that it works: it has accepted something, or refuses this stream only.
func (a *answer) answered() bool {
	if !a.executed {
		return a.err != nil && scopeOf(a.err) == ofStream
	}
	return a.each == nil || slices.ContainsFunc(a.each, func(err error) bool {
		r, refused := errors.AsType[refusal](err)
		return !refused || r.scope() != ofNode
	})
}

// down reports whether the server is away, and was not only lost on the way: it cannot be reached, is silent, or refuses
// everything.
func (a *answer) down() bool {
	return !a.executed && !a.tooLarge && scopeOf(a.err) == ofNode && (a.timedOut || !a.unknown)
}

const invalidBulk = "ERR Protocol error: invalid bulk length"

// judge reads the replies to a transaction: to MULTI, to each XADD, and to EXEC. broke is the error that ended the
// pipeline early.
//
// If Redis refuses an entry while it queues them (by an error reply to XADD), it answers EXEC by EXECABORT, and
// executes nothing. If an entry fails while the transaction is executed, its error stands at its place in the reply to
// EXEC, and the other entries are executed all the same.
func judge(ctx context.Context, multi *command, adds []*command, exec *redis.RawCmd, broke error) answer {
	first := firstRefusal(multi, adds)
	if exec.Err() != nil || len(exec.Val()) == 0 {
		err := exec.Err()
		if err == nil {
			err = broke
		}
		if err == nil {
			err = errors.New("no answer")
		}
		if first != "" { // refused before the connection broke: nothing was executed, if it was in a transaction
			a := refused(first)
			a.broken, a.unknown = true, multi.answered() && multi.reply[0] == '-'
			return a
		}
		if multi.answered() {
			return judgeError(ctx, err)
		}
		return judgeFirstError(ctx, err)
	}
	line, rest, _ := bytes.Cut(exec.Val(), []byte("\r\n"))
	switch line[0] {
	case '*':
		if n, err := strconv.Atoi(string(line[1:])); err == nil && n == len(adds) {
			return executed(rest, n)
		}
	case '-':
		r := refusalOf(line)
		switch {
		case r.code() == "EXECABORT" && first != "":
			return refused(first)
		case r.code() == "EXECABORT":
			// Redis 7 refuses EXEC itself if its state has changed since it queued the commands: "… discarded because
			// of: OOM …".
			if _, cause, ok := strings.Cut(string(r), "because of: "); ok {
				r = refusal(cause)
			}
		case multi.answered() && multi.reply[0] == '-':
			return loose(first, adds)
		}
		return refused(r)
	}
	return answer{err: fmt.Errorf("unexpected reply %.20q to EXEC", line), unknown: true, broken: true}
}

func firstRefusal(multi *command, adds []*command) refusal {
	if multi.answered() && multi.reply[0] == '-' {
		return refusalOf(multi.reply)
	}
	for _, add := range adds {
		if add.answered() && add.reply[0] == '-' {
			return refusalOf(add.reply)
		}
	}
	return ""
}

// executed reads the elements of the reply to EXEC, which are ids and errors.
func executed(reply []byte, n int) answer {
	a := answer{executed: true}
	for i := range n {
		line, rest, _ := bytes.Cut(reply, []byte("\r\n"))
		switch {
		case len(line) > 0 && line[0] == '-':
			if a.each == nil {
				a.each = make([]error, n)
			}
			a.each[i] = refusalOf(line)
		case len(line) > 1 && line[0] == '$' && line[1] != '-':
			_, rest, _ = bytes.Cut(rest, []byte("\r\n")) // an id contains no line end
		default:
			return answer{err: fmt.Errorf("unexpected reply %.20q to XADD", line), unknown: true, broken: true}
		}
		reply = rest
	}
	return a
}

// loose returns the answer for entries whose MULTI was refused, so that each was executed by itself. That happens if
// the user has lost the right since the link was made, or if the server refuses everything.
func loose(multi refusal, adds []*command) answer {
	a := answer{executed: true, broken: true, each: make([]error, len(adds))}
	accepted := 0
	for i, add := range adds {
		switch {
		case !add.answered():
			return answer{err: errors.New("no answer to XADD"), unknown: true, broken: true}
		case add.reply[0] == '-':
			a.each[i] = refusalOf(add.reply)
		default:
			accepted++
		}
	}
	if accepted == 0 {
		a = refused(multi)
		a.broken = true
	}
	return a
}

// refused returns the answer if Redis has refused the whole transaction.
func refused(r refusal) answer {
	a := answer{err: r}
	switch r.code() {
	case "MOVED", "ASK":
		if words := strings.Fields(string(r)); len(words) == 3 && !strings.HasPrefix(words[2], ":") {
			a.moved, a.asking = words[2], words[0] == "ASK"
		}
		a.broken = true // the map of the cluster is out of date
	case "READONLY", "NOAUTH", "MASTERDOWN", "CLUSTERDOWN":
		a.broken = true // another server may be the master by now, or the name may lead to another server
	}
	if strings.HasPrefix(string(r), "ERR Protocol error") { // after which it closes the connection
		a.broken, a.tooLarge = true, strings.HasPrefix(string(r), invalidBulk)
	}
	return a
}

// judgeFirstError returns the answer for a pipeline that broke before its first reply. If it could not even connect,
// nothing was written.
func judgeFirstError(ctx context.Context, err error) answer {
	a := judgeError(ctx, err)
	var op *net.OpError
	var said redis.Error
	if errors.As(err, &op) && op.Op == "dial" || errors.As(err, &said) { // refused while the connection was set up
		a.unknown = false
	}
	return a
}

// judgeError returns the answer for a pipeline that broke after it had begun.
func judgeError(ctx context.Context, err error) answer {
	a := answer{err: err, broken: true, unknown: true}
	var timeout net.Error
	a.timedOut = errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() ||
		errors.Is(ctx.Err(), context.DeadlineExceeded)
	if said, ok := errors.AsType[redis.Error](err); ok {
		a.err = refusal(said.Error())
	}
	if ctx.Err() != nil {
		a.err = context.Cause(ctx) // its end has closed the connection, or has left no time
	}
	return a
}
