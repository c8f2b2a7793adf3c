package replication

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Messages arrive whole, however the bytes are cut. Those that are larger than the buffer come in pieces, or are skipped.
func TestFraming(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWire()
		s := newStream(w, senderTimeout/3)
		ctx, cancel := context.WithCancel(t.Context())
		var want []string
		var all []byte
		most := 0
		for i := range 400 {
			n := i * 7 % 1900
			if i%100 == 50 {
				n = 3 * readBuffer
			}
			b := make([]byte, n)
			for j := range b {
				b[j] = byte(i + j)
			}
			want = append(want, string(b))
			all = append(all, xlog(string(b))...)
		}
		ended := make(chan error)
		go func() { // puts together what comes, except that it skips every other large message
			skip := false
			for i := 0; ; i++ {
				f, err := s.Next(ctx)
				if err != nil {
					ended <- err
					return
				}
				got, whole := string(f.Data), true
				if f.Rest > 0 {
					if len(got) < 8 || len(got)+f.Rest != len(want[i]) {
						t.Errorf("message %d begins with %d bytes, %d follow, want %d together", i, len(got), f.Rest, len(want[i]))
					}
					skip = !skip
					for left := f.Rest; left > 0 && (!skip || left > readBuffer); {
						b, err := s.More(ctx)
						if err != nil || len(b) == 0 || len(b) > left {
							t.Errorf("message %d goes on with %d bytes of %d: %v", i, len(b), left, err)
							break
						}
						got += string(b)
						left -= len(b)
					}
					whole = !skip
				}
				if whole && got != want[i] || !strings.HasPrefix(want[i], got) {
					t.Errorf("message %d has %d bytes, want %d", i, len(got), len(want[i]))
				}
				if most = max(most, len(s.buf)); i == len(want)-1 {
					cancel()
				}
			}
		}()
		for i := 0; len(all) > 0; i++ {
			n := min(len(all), 1+i*977%50000)
			w.in <- all[:n]
			all = all[n:]
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if most != readBuffer {
			t.Errorf("the buffer has grown to %d bytes", most)
		}
		if _, err := s.More(t.Context()); err == nil {
			t.Error("more of a message that is not large")
		}
	})
}

// A large message that breaks off ends the stream. A stop interrupts the wait for the rest of one.
func TestLargeMessageBreaksOff(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w *fakeWire, cancel func()){
		"the connection ends": func(w *fakeWire, _ func()) { close(w.in) },
		"it is told to stop":  func(_ *fakeWire, cancel func()) { cancel() },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newFakeWire()
			s := newStream(w, senderTimeout/3)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w.in <- xlog(strings.Repeat("x", 2*readBuffer))[:readBuffer/2]
			f, err := s.Next(ctx)
			if err != nil || f.Rest == 0 {
				t.Fatalf("%s: %d bytes to come, %v", name, f.Rest, err)
			}
			began := time.Now()
			go func() {
				time.Sleep(time.Minute + time.Second) // at a time when no status is due
				end(w, cancel)
			}()
			for err == nil {
				_, err = s.More(ctx)
			}
			if took := time.Since(began); took != time.Minute+time.Second || len(w.statuses()) != 12 {
				t.Errorf("%s: ended after %s, %v; %d statuses meanwhile, want one in 5 s", name, took, err, len(w.statuses()))
			}
			if stopped := ctx.Err() != nil; s.Broken() == stopped {
				t.Errorf("%s: broken %t", name, s.Broken())
			}
		})
	}
}
