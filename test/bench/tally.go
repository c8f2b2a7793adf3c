//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// counts is what became of the events that were written.
type counts struct {
	Missing    int `json:"missing"`
	Misordered int `json:"misordered"`
	Duplicated int `json:"duplicated"`
	Unrecorded int `json:"unrecorded"` // without a delivered row in the ledger
}

func (c counts) add(o counts) counts {
	return counts{c.Missing + o.Missing, c.Misordered + o.Misordered, c.Duplicated + o.Duplicated, c.Unrecorded + o.Unrecorded}
}

// tally compares what arrives with the events that were written, whose numbers begin with 1. Each writer numbers its events
// in the order of its commits, and each aggregate has one writer. So the numbers of an aggregate must rise.
type tally struct {
	seen       []bool
	last       map[string]int // the highest number by aggregate
	misordered int
	duplicated int
}

func newTally(events int) *tally {
	return &tally{seen: make([]bool, events+1), last: make(map[string]int)}
}

// add counts one event. The events of an aggregate must be added in the order in which they arrive.
func (t *tally) add(aggregate string, payload []byte) error {
	n, err := number(payload)
	if err != nil || n < 1 || n >= len(t.seen) {
		return fmt.Errorf("what arrived is none of the events written: %.80q", payload)
	}
	if t.seen[n] {
		t.duplicated++
		return nil
	}
	t.seen[n] = true
	if n < t.last[aggregate] {
		t.misordered++
	}
	t.last[aggregate] = max(t.last[aggregate], n)
	return nil
}

func (t *tally) counts() counts {
	c := counts{Misordered: t.misordered, Duplicated: t.duplicated}
	for _, found := range t.seen[1:] {
		if !found {
			c.Missing++
		}
	}
	return c
}

// number reads the number of an event from the beginning of its payload.
func number(payload []byte) (int, error) {
	rest, ok := bytes.CutPrefix(payload, []byte(`{"seq": `))
	if !ok {
		return 0, errors.New("the payload does not begin with its number")
	}
	digits, _, _ := bytes.Cut(rest, []byte(","))
	return strconv.Atoi(string(digits))
}
