package admin

import "context"

// DeadLetter is a dead letter with its history.
type DeadLetter struct {
	ParkedRow
	// Log holds the newest tries, the newest first.
	Log []Try `json:"log"`
}

// DeadLetterQuery selects dead letters.
type DeadLetterQuery struct {
	Filter Filter
	// Payload asks for the payloads as well.
	Payload bool
	// Limit is how many ShowDeadLetters returns, at least 1. EachDeadLetter has no limit.
	Limit int
}

func (l *ledgerConn) eachDead(ctx context.Context, q DeadLetterQuery, processors []int32, f func(*ParkedRow) (more bool, err error)) error {
	return l.eachParkedRow(ctx, parkedQuery{status: "dead", filter: q.Filter, processors: processors, payload: q.Payload}, f)
}

// EachDeadLetter calls f with each dead letter that q selects, in the order of sink and position, until f returns false. They
// have no Log.
func EachDeadLetter(ctx context.Context, c Config, q DeadLetterQuery, f func(*ParkedRow) (more bool, err error)) error {
	return withLedger(ctx, c, func(l *ledgerConn) error {
		processors, err := l.processorIDs(q.Filter.Sinks)
		if err != nil {
			return err
		}
		return l.eachDead(ctx, q, processors, f)
	})
}

// ShowDeadLetters returns at most q.Limit dead letters with their history. If q selects none, that is an error, which says why
// if q names an event.
func ShowDeadLetters(ctx context.Context, c Config, q DeadLetterQuery) ([]DeadLetter, error) {
	var letters []DeadLetter
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		processors, err := l.processorIDs(q.Filter.Sinks)
		if err != nil {
			return err
		}
		err = l.eachDead(ctx, q, processors, func(p *ParkedRow) (bool, error) {
			letters = append(letters, DeadLetter{ParkedRow: *p, Log: []Try{}})
			return len(letters) < q.Limit, nil
		})
		if err != nil {
			return err
		}
		if letters == nil {
			for _, id := range q.Filter.IDs {
				return l.wrongStatus(ctx, "dead", "shown as a dead letter", id, processors)
			}
			return l.noMatch(ctx, "dead", q.Filter)
		}
		for i := range letters {
			if letters[i].Event.ID == "" {
				continue
			}
			if letters[i].Log, err = l.triesOf(ctx, letters[i].Event.ID, []int32{letters[i].key().Processor}, 20); err != nil {
				return err
			}
		}
		return nil
	})
	return letters, err
}
