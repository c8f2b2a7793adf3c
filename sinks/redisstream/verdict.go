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

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// answer is what became of a transaction as a whole.
type answer struct {
	executed bool  // what became of each entry is in each
	err      error // else the cause why nothing of it was accepted, as far as is known
	each     []error

	unknown  bool // it may have been accepted all the same
	timedOut bool
	broken   bool // the connection, or the server behind it, is not the right one any more
	tooLarge bool // the one message of it is

	moved  string // the node of the cluster that has the stream, "" if that is not why
	asking bool   // it is about to have it, and must be told that we know
}

// refusal is an error of Redis.
type refusal string

func (r refusal) Error() string { return string(r) }

// code is its first word, and Redis has one for each kind but for "ERR".
func (r refusal) code() string {
	code, _, _ := strings.Cut(string(r), " ")
	return code
}

// refusalOf reads an error reply. What follows "with args" is quoted from the command.
func refusalOf(line []byte) refusal {
	text, _, _ := strings.Cut(string(line[1:]), ", with args")
	if len(text) > 200 {
		text = text[:200]
	}
	return refusal(strings.TrimRight(text, "\r\n"))
}

// awayCodes are those that tell of the destination and not of the message: a person or time mends them. WRONGTYPE is
// one: the key of the stream holds something else, which is no property of any event, befalls all of the stream, and
// goes away when the key does, like a Kafka topic that we have no right to.
var awayCodes = []string{
	"LOADING", "READONLY", "OOM", "MISCONF", "NOAUTH", "NOPERM", "WRONGPASS", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN",
	"MOVED", "ASK", "CROSSSLOT", "NOREPLICAS", "BUSY", "UNKILLABLE", "DENIED", "WRONGTYPE", "EXECABORT",
}

// awayTexts are those among the errors without a code of their own.
var awayTexts = []string{
	"ERR unknown command", "ERR syntax error", "ERR max number of clients", "ERR The stream has exhausted",
}

// remedies are for whoever reads the error.
var remedies = map[string]string{
	"WRONGTYPE": "the key holds something else; delete or rename it, or give the sink another topic",
	"NOPERM":    "the user needs +multi +exec +xadd, +select for a database, +cluster and +asking in a cluster, and the key pattern of the streams",
	"NOAUTH":    "set username and password",
	"MOVED":     "the server is part of a cluster; set addresses",
	"OOM":       "raise maxmemory, or trim the streams with max_len or min_id_age",
}

// failure is what a message is told that was refused by itself, in a transaction that was executed.
func (r refusal) failure(stream string) error {
	switch {
	case strings.HasPrefix(string(r), "ERR Elements are too large"):
		return fmt.Errorf("%w: stream %q: %w", sinks.ErrPermanent, stream, r)
	case r.away():
		return unavailable(stream, r)
	}
	return fmt.Errorf("stream %q: %w", stream, r)
}

func (r refusal) away() bool {
	return slices.Contains(awayCodes, r.code()) ||
		slices.ContainsFunc(awayTexts, func(text string) bool { return strings.HasPrefix(string(r), text) })
}

// unavailable names the remedy where there is one.
func unavailable(stream string, err error) error {
	var r refusal
	if errors.As(err, &r) && remedies[r.code()] != "" {
		return fmt.Errorf("%w: stream %q: %w; %s", sinks.ErrUnavailable, stream, err, remedies[r.code()])
	}
	return fmt.Errorf("%w: stream %q: %w", sinks.ErrUnavailable, stream, err)
}

const invalidBulk = "ERR Protocol error: invalid bulk length"

// judge reads the replies to a transaction: to MULTI, to each XADD, to EXEC. broke is what ended the pipeline early.
//
// What Redis refuses while it queues (the first error replies) has EXEC answer EXECABORT, and nothing was executed. What
// fails while it executes stands in the reply of EXEC, in its place, and the others are executed all the same.
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
		if first != "" { // said before it hung up: nothing was executed, unless it was not in a transaction
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
			// Redis 7 refuses EXEC itself when the state has changed since it queued: "… discarded because of: OOM …".
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

// executed reads the elements of EXEC's reply: ids and errors.
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
			_, rest, _ = bytes.Cut(rest, []byte("\r\n")) // an id holds no line end
		default:
			return answer{err: fmt.Errorf("unexpected reply %.20q to XADD", line), unknown: true, broken: true}
		}
		reply = rest
	}
	return a
}

// loose is what became of entries whose MULTI was refused: each was executed by itself. It takes a right that was lost
// since the link was made, or a server that refuses everything.
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

// refused is the answer where Redis said no to all.
func refused(r refusal) answer {
	a := answer{err: r}
	switch r.code() {
	case "MOVED", "ASK":
		if words := strings.Fields(string(r)); len(words) == 3 && !strings.HasPrefix(words[2], ":") {
			a.moved, a.asking = words[2], words[0] == "ASK"
		}
		a.broken = true // the map of the cluster is old
	case "READONLY", "NOAUTH", "MASTERDOWN", "CLUSTERDOWN":
		a.broken = true // another may be the master by now, or its name lead elsewhere
	}
	if strings.HasPrefix(string(r), "ERR Protocol error") { // and hangs up
		a.broken, a.tooLarge = true, strings.HasPrefix(string(r), invalidBulk)
	}
	return a
}

// judgeFirstError is for a pipeline that broke before its first answer. If it could not even connect, nothing was written.
func judgeFirstError(ctx context.Context, err error) answer {
	a := judgeError(ctx, err)
	var op *net.OpError
	var said redis.Error
	if errors.As(err, &op) && op.Op == "dial" || errors.As(err, &said) { // said while it was connected to
		a.unknown = false
	}
	return a
}

// judgeError is for a pipeline that broke after it had begun.
func judgeError(ctx context.Context, err error) answer {
	a := answer{err: err, broken: true, unknown: true}
	var timeout net.Error
	a.timedOut = errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() ||
		errors.Is(ctx.Err(), context.DeadlineExceeded)
	var said redis.Error
	if errors.As(err, &said) {
		a.err = refusal(said.Error())
	}
	if ctx.Err() != nil {
		a.err = context.Cause(ctx) // which closed the connection, or let no time
	}
	return a
}
