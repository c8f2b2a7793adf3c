package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Process is a process of the connector. Its connections say it to PostgreSQL, as their application_name:
//
//	outbox-cdc shop_outbox 4711@orders-7d9f8b6c5-x2x7k :9640
//
// pg_stat_activity shows an application_name to every login, but no more than 63 bytes of it. If there is no room, the slot is cut at its end,
// and then the host in its middle, because its end tells the pods of a deployment apart. "~" stands where something was cut.
type Process struct {
	Slot string
	Host string
	PID  int
	// HTTP is where it serves /status: host:port, or :port for all addresses of its host. It is empty if it serves none.
	HTTP string
}

// ThisProcess returns the process that runs, with the slot that it streams from.
func ThisProcess(slot string) Process {
	host, _ := os.Hostname() // for people and for finding its HTTP server; without it there is still the pid
	return Process{Slot: slot, Host: cmp.Or(host, "unknown"), PID: os.Getpid()}
}

const (
	applicationPrefix  = "outbox-cdc"
	maxApplicationName = 63 // NAMEDATALEN - 1
	leastSlot          = 8  // bytes of the slot that remain if the host has to be cut as well
	leastRoom          = 16 // bytes for slot and host; a longer HTTP becomes :port
	cutMark            = "~"
)

// ApplicationName returns what the connections of the process have as their application_name.
func (p Process) ApplicationName() string {
	text := func(slot, host string) string {
		name := fmt.Sprintf("%s %s %d@%s", applicationPrefix, slot, p.PID, host)
		if p.HTTP != "" {
			name += " " + p.HTTP
		}
		return name
	}
	if len(text("", ""))+leastRoom > maxApplicationName {
		p.HTTP = p.HTTP[max(0, strings.LastIndexByte(p.HTTP, ':')):]
	}
	host := strings.Map(func(r rune) rune { // PostgreSQL takes printable ASCII
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, p.Host)
	room := maxApplicationName - len(text("", ""))
	if most := max(3, room-min(len(p.Slot), leastSlot)); len(host) > most {
		kept := most - len(cutMark)
		host = host[:kept/2] + cutMark + host[len(host)-(kept-kept/2):]
	}
	slot := p.Slot
	if most := max(1, room-len(host)); len(slot) > most {
		slot = slot[:most-len(cutMark)] + cutMark
	}
	return text(slot, host)
}

// parseProcess reads an application_name.
func parseProcess(name string) (p Process, ok bool) {
	fields := strings.Split(name, " ")
	if len(fields) < 3 || len(fields) > 4 || fields[0] != applicationPrefix {
		return p, false
	}
	pid, host, _ := strings.Cut(fields[2], "@")
	n, err := strconv.Atoi(pid)
	if err != nil || n <= 0 || host == "" {
		return p, false
	}
	p = Process{Slot: fields[1], PID: n, Host: host}
	if len(fields) == 4 {
		p.HTTP = fields[3]
	}
	return p, true
}

// Instance is a process of the connector that is connected to the database.
type Instance struct {
	Process
	// Leader is true if the process has the slot, and LeaderSince is since when. That is zero if our login may not see it.
	Leader      bool
	LeaderSince time.Time
	// StandsBy is true if another process has the slot. If neither is true, nobody has it: the process starts, or cannot stream.
	StandsBy bool
	// Address is from where it is connected, as PostgreSQL sees it. It is empty if our login may not see it, and for a socket.
	Address string
}

// instanceKey is the text of which the key of the advisory lock is made by which the instances of a slot are found.
func (s Schema) instanceKey(slot string) string {
	return "outbox-cdc instance " + s.quote(slot)
}

// Appear makes the process that has this connection an instance of the slot, for Instances, as long as the connection lives. All instances
// share an advisory lock. It waits for nothing and writes nothing. The connection says who it is by its application_name.
func (s Schema) Appear(ctx context.Context, db Execer, slot string) error {
	_, err := db.Exec(ctx, "select pg_try_advisory_lock_shared(hashtextextended($1, 0))", s.instanceKey(slot))
	if err != nil {
		return fmt.Errorf("show this instance to others: %w", err)
	}
	return nil
}

// instancesOf finds connections that say who they are: those that have the lock, and the one that has the slot. Our login may not see
// backend_start and client_addr of others. It asks for no table, so that it answers while the ledger is locked.
const instancesOf = `
	select false, a.application_name, coalesce(host(a.client_addr), ''), null::timestamptz
		from pg_locks l join pg_stat_activity a on a.pid = l.pid
		where l.locktype = 'advisory' and l.granted and l.objsubid = 1
			and l.database = (select oid from pg_database where datname = current_database())
			and (l.classid::int8 << 32) | l.objid::int8 = hashtextextended($1, 0)
			and has_table_privilege(a.usesysid, (select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
				where n.nspname = $2 and c.relname = 'outbox_checkpoints'), 'update')
	union all
	select true, a.application_name, coalesce(host(a.client_addr), ''), a.backend_start
		from pg_replication_slots s join pg_stat_activity a on a.pid = s.active_pid
		where s.slot_name = $3 and s.database = current_database()
	order by 2`

// Instances returns the processes that are connected and work with this slot, the one that has the slot first. A process that was killed
// is missing as soon as PostgreSQL hears from the network that its connections are closed. Connections count only if their login may write
// the checkpoint: others could take the lock as well, and say anything of themselves. If the slot is in use by a process that is not found in
// this way, such as one of an older version, that process comes without a host and with pid 0. Within a transaction
// PostgreSQL shows its sessions as they were when it was first asked.
func (s Schema) Instances(ctx context.Context, db Querier, slot string) ([]Instance, error) {
	fail := func(err error) ([]Instance, error) {
		return nil, fmt.Errorf("look for the instances of slot %q: %w", slot, err)
	}
	rows, err := db.Query(ctx, instancesOf, s.instanceKey(slot), string(s), slot)
	if err != nil {
		return fail(err)
	}
	var all []Instance
	var leader *Instance
	var i Instance
	var name string
	var since *time.Time
	_, err = pgx.ForEachRow(rows, []any{&i.Leader, &name, &i.Address, &since}, func() error {
		var ok bool
		i.Process, ok = parseProcess(name)
		switch {
		case i.Leader:
			leader = &Instance{Process: i.Process, Leader: true, Address: i.Address}
			if since != nil {
				leader.LeaderSince = *since
			}
		case ok && (len(all) == 0 || all[len(all)-1].Process != i.Process): // a process has several connections
			all = append(all, i)
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	if leader == nil {
		return all, nil
	}
	if leader.PID == 0 {
		if leader.Process, err = s.recordingProcess(ctx, db, slot); err != nil {
			return fail(err)
		}
	}
	return leader.before(all), nil
}

// recordingProcess returns the process that records outcomes, or the zero Process if it is not known. It says who streams if the login
// of the stream has an application_name of its own.
func (s Schema) recordingProcess(ctx context.Context, db Querier, slot string) (p Process, err error) {
	var name string
	err = db.QueryRow(ctx, s.statement(`select a.application_name from ledger.outbox_checkpoints c
		join pg_stat_activity a on a.pid = c.recorder_pid and coalesce(a.backend_start = c.recorder_started, true)
		where c.slot_name = $1`), slot).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, nil
	}
	p, _ = parseProcess(name)
	return p, err
}

// before returns the leader and behind it the others, which stand by. A leader that is not among all has no name.
func (i *Instance) before(all []Instance) []Instance {
	sorted := []Instance{{Leader: true, LeaderSince: i.LeaderSince, Address: i.Address}}
	for _, other := range all {
		if other.Process == i.Process {
			sorted[0].Process = other.Process
			continue
		}
		other.StandsBy = true
		sorted = append(sorted, other)
	}
	return sorted
}

// StatusAddresses returns where somebody on the host from may ask for the /status of the instance, host:port each, the likeliest first. The
// answer has to name the host and pid of the instance: an address may lead to another process. There is none if the instance has no HTTP
// server, or listens only on a loopback address of another host.
func (i Instance) StatusAddresses(from string) (all []string) {
	host, port, err := net.SplitHostPort(i.HTTP)
	if err != nil {
		return nil
	}
	here := i.IsOn(from)
	ip := net.ParseIP(host)
	switch {
	case host == "localhost" || ip.IsLoopback():
		if here {
			all = append(all, i.HTTP)
		}
	case host != "":
		all = append(all, i.HTTP)
	default:
		if here {
			all = append(all, net.JoinHostPort("localhost", port))
		}
		if client := net.ParseIP(i.Address); client != nil && !client.IsLoopback() {
			all = append(all, net.JoinHostPort(i.Address, port))
		}
		if !here && !strings.Contains(i.Host, cutMark) {
			all = append(all, net.JoinHostPort(i.Host, port))
		}
	}
	return all
}

// IsOn reports whether the process runs on a host of this name.
func (p Process) IsOn(host string) bool {
	if start, end, isCut := strings.Cut(p.Host, cutMark); isCut {
		return strings.HasPrefix(host, start) && strings.HasSuffix(host, end)
	}
	return p.Host == host
}
