package servers

import (
	"context"
	"strings"
	"testing"
	"time"
)

func redisFor(t *testing.T, o RedisOptions) *Redis {
	t.Helper()
	r, err := StartRedis(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func wantSaid(t *testing.T, r *Redis, command, want string) {
	t.Helper()
	if got, err := r.say(t.Context(), command); err != nil || got != want {
		t.Errorf("%s: want %q, got %q (%v)", command, want, got, err)
	}
}

func TestRedisKeepsWhatItAccepted(t *testing.T) {
	t.Parallel()
	r := redisFor(t, RedisOptions{Settings: map[string]string{"maxmemory": "12mb"}})
	t.Logf("Redis %s at %s", r.Version(), r.URL())
	wantSaid(t, r, "SET greeting one", "+OK")
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantSaid(t, r, "GET greeting", "one")
	if info, err := r.say(t.Context(), "INFO memory"); err != nil || !strings.Contains(info, "\r\nmaxmemory:12582912\r\n") {
		t.Errorf("the setting was lost: %s (%v)", info, err)
	}
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	silent, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := r.ask(silent); err == nil {
		t.Error("a paused server answers")
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	r := redisFor(t, RedisOptions{Cluster: true})
	wantSaid(t, r, "SET a 1", "+OK")
	wantSaid(t, r, "SET b 2", "+OK")
}

func TestSentinel(t *testing.T) {
	t.Parallel()
	master := redisFor(t, RedisOptions{})
	s, err := StartSentinel(t.Context(), "shop", master.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	wantSaid(t, s, "SENTINEL CKQUORUM shop", "+OK 1 usable Sentinels. Quorum and failover authorization can be reached")
}
