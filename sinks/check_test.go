package sinks_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestRefusedLoginKeepsTheClass(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("send: %w", sinks.RefusedLogin(fmt.Errorf("wrong password: %w", sinks.ErrUnavailable)))
	if !sinks.IsRefusedLogin(err) || !errors.Is(err, sinks.ErrUnavailable) {
		t.Errorf("%v: want a refused login of the class ErrUnavailable", err)
	}
	if sinks.IsRefusedLogin(sinks.ErrUnavailable) {
		t.Error("ErrUnavailable alone is no refused login")
	}
}
