package sinks_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestClassOf(t *testing.T) {
	t.Parallel()
	refused := errors.New("500")
	for _, c := range []struct{ err, want error }{
		{nil, nil},
		{refused, nil},
		{sinks.After(time.Second, refused), nil},
		{fmt.Errorf("400: %w", sinks.ErrPermanent), sinks.ErrPermanent},
		{sinks.After(time.Second, fmt.Errorf("404: %w", sinks.ErrTopicUnavailable)), sinks.ErrTopicUnavailable},
		{sinks.RefusedLogin(fmt.Errorf("401: %w", sinks.ErrUnavailable)), sinks.ErrUnavailable},
		{sinks.PutOff(time.Second), sinks.ErrNotAttempted},
		{sinks.Throttled(fmt.Errorf("429: %w", sinks.ErrUnavailable)), sinks.ErrUnavailable},
		{errors.Join(sinks.ErrUnavailable, sinks.ErrTopicUnavailable), sinks.ErrTopicUnavailable},
		{errors.Join(sinks.ErrTopicUnavailable, sinks.ErrNotAttempted), sinks.ErrNotAttempted},
		{errors.Join(sinks.ErrNotAttempted, sinks.ErrPermanent), sinks.ErrPermanent},
	} {
		if got := sinks.ClassOf(c.err); !errors.Is(got, c.want) {
			t.Errorf("%v is of class %v, want %v", c.err, got, c.want)
		}
	}
}
