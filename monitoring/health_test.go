package monitoring

import "testing"

func TestHealthChanged(t *testing.T) {
	t.Parallel()
	var h Health
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	first, second := h.Changed(), h.Changed()
	if closed(first) {
		t.Error("closed before anything has changed")
	}
	h.Set("session", Failed("starting"))
	if !closed(first) || !closed(second) {
		t.Error("who waits does not hear of it")
	}
	third := h.Changed()
	if closed(third) {
		t.Error("closed by the change before it was asked for")
	}
	if h.SetOnly("session", OK("streaming")); !closed(third) {
		t.Error("who waits again does not hear of it")
	}
}
