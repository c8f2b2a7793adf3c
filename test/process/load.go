//go:build linux

package process

import (
	"context"
	"encoding/base64"
	"errors"
	"math/rand/v2"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// The load that the measurements share.
const (
	// Topic is where the default template sends events of the one aggregate type, "order".
	Topic = "outbox.event.order"
	// Partitions is a realistic number of them: each produce request is split among them.
	Partitions = 8
	// Aggregates take turns. Their number is a multiple of Writers, who take turns as well: no aggregate has two of them.
	Aggregates = 5000
	Writers    = 8
)

// Payloads returns the rest of some payloads, behind the number of the event: about 500 bytes that do not compress, except
// that they are text.
func Payloads() []string {
	all := make([]string, 1000)
	for i := range all {
		data := make([]byte, 360)
		for j := range data {
			data[j] = byte(rand.Uint32())
		}
		all[i] = `, "data": "` + base64.StdEncoding.EncodeToString(data) + `"}`
	}
	return all
}

// Pace calls do with 0, 1, … at a rate a second, n times or until ctx ends; an error of do ends it. The timers of the Go
// runtime are a millisecond coarse when a program is idle, which is longer than the distance between two events. So Pace
// blocks a thread that sleeps by itself.
func Pace(ctx context.Context, rate, n int, do func(i int) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	begin := now.Nano()
	for i := 0; i < n && ctx.Err() == nil; i++ {
		until := unix.NsecToTimespec(begin + int64(i)*int64(time.Second)/int64(rate))
		for {
			err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &until, nil)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EINTR) { // the runtime's own signals interrupt it
				return err
			}
		}
		if err := do(i); err != nil {
			return err
		}
	}
	return nil
}
