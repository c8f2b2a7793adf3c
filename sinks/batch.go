package sinks

import "sync/atomic"

// Batch is the messages of one Deliver call, with what has become of each so far. It keeps the contract's rule of order for
// the sink: once a message has failed, the later messages of its aggregate are ErrNotAttempted.
//
// A sink uses one Batch again for each of its calls, by Begin. The messages of one aggregate are for one goroutine at a time.
// Different aggregates may be handled by different goroutines.
type Batch struct {
	// Messages are those of the call. They belong to the caller of Deliver.
	Messages []Message

	aggregates []int32          // for each message, the number of its aggregate
	next       []int32          // for each message, the index of the next one of its aggregate; −1 for the last
	heads      []int32          // for each aggregate, the index of its first message
	last       []int32          // for each aggregate, the index of its last message
	failed     []bool           // for each aggregate: one of its messages was not accepted
	errs       []error          // for each message; the caller of Deliver gets it if anything has failed
	anyFailed  atomic.Bool      // something has failed
	numbers    map[uint64]int32 // by Aggregate.Hash
}

// Begin begins a call. Nothing of the call before is kept. It returns b.
func (b *Batch) Begin(messages []Message) *Batch {
	b.Messages = messages
	b.aggregates, b.next = resized(b.aggregates, len(messages)), resized(b.next, len(messages))
	b.errs = resized(b.errs, len(messages))
	b.heads, b.last, b.failed = b.heads[:0], b.last[:0], b.failed[:0]
	b.anyFailed.Store(false)
	if b.numbers == nil {
		b.numbers = make(map[uint64]int32, len(messages))
	}
	clear(b.numbers)
	for i := range messages {
		hash := messages[i].Aggregate().Hash()
		n, known := b.numbers[hash]
		if known {
			b.next[b.last[n]] = int32(i)
			b.last[n] = int32(i)
		} else {
			n = int32(len(b.heads))
			b.numbers[hash] = n
			b.heads, b.last, b.failed = append(b.heads, int32(i)), append(b.last, int32(i)), append(b.failed, false)
		}
		b.aggregates[i], b.next[i] = n, -1
	}
	return b
}

// resized returns a slice of n zero values, which uses the memory of old where it can.
func resized[T any](old []T, n int) []T {
	if cap(old) < n {
		return make([]T, n)
	}
	old = old[:n]
	clear(old)
	return old
}

// Heads returns the index of the first message of each aggregate. It belongs to the caller, until the next Begin.
func (b *Batch) Heads() []int32 { return b.heads }

// Aggregate returns the number of message i's aggregate within this batch, from 0, which is its place in Heads before the
// caller changes that.
func (b *Batch) Aggregate(i int) int { return int(b.aggregates[i]) }

// Next returns the index of the message of the same aggregate that follows message i, and −1 if there is none.
func (b *Batch) Next(i int) int { return int(b.next[i]) }

// Blocked reports whether an earlier message of i's aggregate has failed. Message i must not be sent then; Fail makes it
// ErrNotAttempted.
func (b *Batch) Blocked(i int) bool { return b.failed[b.aggregates[i]] }

// Fail says that message i was not accepted, because of err. If an earlier message of its aggregate has failed, message i
// gets ErrNotAttempted in place of err.
func (b *Batch) Fail(i int, err error) {
	if b.Blocked(i) {
		err = ErrNotAttempted
	}
	b.Lose(i, err)
}

// Lose says that message i was sent and that its outcome is unknown. It keeps its error, ErrUnavailable or
// ErrTopicUnavailable, also behind another message of its aggregate that has failed.
func (b *Batch) Lose(i int, err error) {
	b.failed[b.aggregates[i]] = true
	b.errs[i] = err
	b.anyFailed.Store(true)
}

// FailRest fails message i because of err, and with it all later messages of its aggregate.
func (b *Batch) FailRest(i int, err error) {
	for ; i >= 0; i = b.Next(i) {
		b.Fail(i, err)
	}
}

// Errors returns what Deliver returns. It ends the call: after it the sink keeps no reference to the messages.
func (b *Batch) Errors() []error {
	b.Messages = nil
	if !b.anyFailed.Load() {
		return nil
	}
	errs := b.errs
	b.errs = nil // they are the caller's now
	return errs
}
