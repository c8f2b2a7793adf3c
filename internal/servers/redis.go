package servers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// RedisOptions say how to start a server. The zero value is good for tests: each write is synced to the disk before it
// is acknowledged.
type RedisOptions struct {
	// Settings are those of redis.conf, over ours.
	Settings map[string]string
	// Cluster makes it a cluster of one node, which has all slots.
	Cluster bool
	// Dir is where its data directory is made; "" is the system's directory for temporary files.
	Dir string
}

// Redis is one redis-server, or one Sentinel. Its methods are not safe for concurrent use, except those that only tell
// something.
type Redis struct {
	instance instance
	addr     string
	version  string
	cluster  bool
}

var errNoRedis = errors.New("redis-server is missing; install it (Debian: apt-get install redis-server; macOS: brew install redis)")

// StartRedis starts the redis-server that is installed. It answers requests when this returns.
func StartRedis(ctx context.Context, o RedisOptions) (*Redis, error) {
	settings := map[string]string{
		"save":           `""`,
		"appendonly":     "yes",
		"appendfsync":    "always",
		"daemonize":      "no",
		"protected-mode": "no", // it listens on 127.0.0.1 only
	}
	if o.Cluster || o.Settings["cluster-enabled"] == "yes" {
		// By default it is 10,000 above the other port, where outgoing connections may have it.
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		settings["cluster-enabled"] = "yes"
		settings["cluster-port"] = strconv.Itoa(port)
		settings["cluster-node-timeout"] = "2000"
	}
	maps.Copy(settings, o.Settings)
	r, err := launchRedis(ctx, o.Dir, formatRedisSettings(settings))
	if err != nil {
		return nil, err
	}
	if r.cluster = o.Cluster; !o.Cluster {
		return r, nil
	}
	if answer, err := r.say(ctx, "CLUSTER ADDSLOTSRANGE 0 16383"); err != nil || answer != "+OK" {
		return nil, joinRemove(fmt.Errorf("give all slots to Redis at %s: %q: %w", r.addr, answer, err), r.instance)
	}
	if err := ready(ctx, "Redis", r.instance, r.ask); err != nil {
		return nil, joinRemove(err, r.instance)
	}
	return r, nil
}

// StartSentinel starts a Sentinel that watches the server at master by this name, and alone decides when it is down:
// after half a second.
func StartSentinel(ctx context.Context, name, master string) (*Redis, error) {
	host, port, err := net.SplitHostPort(master)
	if err != nil {
		return nil, err
	}
	return launchRedis(ctx, "", fmt.Sprintf("sentinel monitor %[1]s %[2]s %[3]s 1\nsentinel down-after-milliseconds %[1]s 500\n"+
		"sentinel failover-timeout %[1]s 5000\n", name, host, port), "--sentinel")
}

func launchRedis(ctx context.Context, parent, config string, args ...string) (*Redis, error) {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errNoRedis
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	dir, err := newDirectory(parent, "redis", nil)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir.path, "redis.conf")
	r := &Redis{addr: local(port), instance: &process{
		path:    binary,
		args:    append([]string{file}, args...),
		logFile: filepath.Join(dir.path, "redis.log"),
		signal:  syscall.SIGKILL,
		dir:     dir,
	}}
	config = fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\n%s", port, dir.path, config)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, joinRemove(err, r.instance)
	}
	if err := r.Start(ctx); err != nil {
		return nil, joinRemove(err, r.instance)
	}
	return r, nil
}

func formatRedisSettings(settings map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s %s\n", name, settings[name])
	}
	return b.String()
}

// Start starts it again, after Stop or Kill, at the same port and with the same data.
func (r *Redis) Start(ctx context.Context) error {
	if err := r.instance.Start(ctx); err != nil {
		return fmt.Errorf("start Redis: %w", err)
	}
	return ready(ctx, "Redis", r.instance, r.ask)
}

// ask is content with a server that has loaded its data, or lets nobody in without a password.
func (r *Redis) ask(ctx context.Context) error {
	info, err := r.say(ctx, "INFO")
	switch {
	case err != nil:
		return err
	case strings.HasPrefix(info, "-NOAUTH"):
		return nil
	case strings.Contains(info, "\r\nloading:1"):
		return errors.New("it is loading its data")
	}
	_, version, ok := strings.Cut(info, "\r\nredis_version:")
	if !ok {
		return fmt.Errorf("not a Redis: it says %.40q", info)
	}
	r.version, _, _ = strings.Cut(version, "\r\n")
	if r.cluster {
		state, err := r.say(ctx, "CLUSTER INFO")
		if err != nil || !strings.Contains(state, "cluster_state:ok") {
			return errors.Join(errors.New("its cluster is not up yet"), err)
		}
	}
	return nil
}

// say sends one command and returns the reply: a bulk string without its frame, or the line as it is.
func (r *Redis) say(ctx context.Context, command string) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(startTimeout)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
		return "", err
	}
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	length, isBulk := strings.CutPrefix(line, "$")
	if !isBulk {
		return line, nil
	}
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 {
		return "", fmt.Errorf("unexpected reply %q", line)
	}
	body := make([]byte, n)
	_, err = io.ReadFull(in, body)
	return string(body), err
}

// Addr is its host:port.
func (r *Redis) Addr() string { return r.addr }

// URL is its address for clients.
func (r *Redis) URL() string { return "redis://" + r.addr }

// Version is what it says itself; "" where it asks for a password.
func (r *Redis) Version() string { return r.version }

// Pid is the server's.
func (r *Redis) Pid() int { return r.instance.Pid() }

// Kill ends it as kill -9 does.
func (r *Redis) Kill() error { return r.end(context.Background(), syscall.SIGKILL) }

// Stop lets it end in good order.
func (r *Redis) Stop(ctx context.Context) error { return r.end(ctx, syscall.SIGTERM) }

func (r *Redis) end(ctx context.Context, sig syscall.Signal) error {
	if err := r.instance.Signal(sig); err != nil {
		return err
	}
	select {
	case <-r.instance.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("Redis at %s is still running: %w", r.addr, context.Cause(ctx))
	}
}

// Pause makes it fall silent with its connections open.
func (r *Redis) Pause() error { return r.instance.Signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (r *Redis) Resume() error { return r.instance.Signal(syscall.SIGCONT) }

// Close ends it at once and removes its data.
func (r *Redis) Close() error { return r.instance.Remove() }
