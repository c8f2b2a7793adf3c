package e2e

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Both instances answer /status, and their connections say which processes they are: until 3 s after one was killed.
func TestInstancesSayWhoTheyAre(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	first, second := w.connector(), w.connector()
	first.start()
	first.ready("leader")
	second.start()
	second.ready("standby")
	for _, c := range []*connector{first, second} {
		var status struct {
			Instance struct {
				PID  int
				Slot string
			}
			Role      string
			Streaming bool
			Stream    *struct{}
			Sinks     []struct{ Name, Condition string }
		}
		body, code, err := c.get("/status")
		if err != nil || code != 200 {
			t.Fatalf("%d, %v", code, err)
		}
		if err := json.Unmarshal(body, &status); err != nil {
			t.Fatal(err)
		}
		leads := c == first
		if status.Streaming != leads || (status.Role == "leader") != leads || (status.Stream != nil) != leads || status.Instance.Slot != w.slot || len(status.Sinks) == 0 {
			t.Errorf("/status says %s", body)
		}
		for _, s := range status.Sinks {
			if (s.Condition == "ok") != leads {
				t.Errorf("%s is %q in %s", s.Name, s.Condition, body)
			}
		}
	}
	conn, err := pgx.Connect(t.Context(), w.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	text := func(sql string) (value string) {
		if err := conn.QueryRow(t.Context(), sql).Scan(&value); err != nil {
			t.Fatal(err)
		}
		return value
	}
	const processes = `select count(distinct application_name)::text from pg_locks l join pg_stat_activity a using (pid)
		where locktype = 'advisory' and l.database = (select oid from pg_database where datname = current_database()) and application_name like 'outbox-cdc % %@% %'`
	if n := text(processes); n != "2" {
		t.Errorf("%s instances", n)
	}
	second.kill()
	for killed := time.Now(); text(processes) != "1"; text("select pg_sleep(0.05)::text") {
		if time.Since(killed) > 3*time.Second {
			t.Fatal("the instance that was killed is still there")
		}
	}
	first.term()
}
