package exitcode

import (
	"errors"
	"fmt"
	"testing"
)

// foreign is an error of another package that carries a code.
type foreign int

func (f foreign) Error() string { return fmt.Sprint("foreign ", int(f)) }
func (f foreign) ExitCode() int { return int(f) }

func TestOf(t *testing.T) {
	t.Parallel()
	plain := errors.New("plain")
	for _, test := range []struct {
		name string
		err  error
		want Code
		text string
	}{
		{"none", nil, OK, ""},
		{"plain", plain, Failure, "plain"},
		{"with", With(Usage, plain), Usage, "plain"},
		{"errorf", Errorf(Unavailable, "ask: %w", plain), Unavailable, "ask: plain"},
		{"wrapped", fmt.Errorf("start: %w", With(SlotLost, plain)), SlotLost, "start: plain"},
		{"joined", errors.Join(plain, With(Privilege, plain)), Privilege, "plain\nplain"},
		{"the outer one counts", Errorf(Config, "open: %w", foreign(77)), Config, "open: foreign 77"},
		{"the first one counts", errors.Join(With(SlotLost, plain), With(Config, plain)), SlotLost, "plain\nplain"},
		{"foreign", fmt.Errorf("open: %w", foreign(78)), Config, "open: foreign 78"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := Of(test.err); got != test.want {
				t.Errorf("Of(%v) = %d, want %d", test.err, got, test.want)
			}
			if test.err != nil && test.err.Error() != test.text {
				t.Errorf("text is %q, want %q", test.err, test.text)
			}
		})
	}
	if err := Errorf(Config, "ask: %w", plain); !errors.Is(err, plain) {
		t.Errorf("%v does not unwrap to its cause", err)
	}
}

func TestFinal(t *testing.T) {
	t.Parallel()
	for code, want := range map[Code]bool{
		OK: false, Failure: false, Usage: false, Unavailable: false, SlotLost: true, Privilege: true, Config: true,
	} {
		if got := code.Final(); got != want {
			t.Errorf("Code(%d).Final() = %t, want %t", code, got, want)
		}
	}
}
