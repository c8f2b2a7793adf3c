package servers

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	natsModule = "github.com/nats-io/nats-server/v2"
	// natsBuildTimeout is generous: with an empty build cache it takes a minute on a small machine.
	natsBuildTimeout = 10 * time.Minute
)

// NATSOptions say how to start a server. The zero value is good for tests: JetStream on files, each message synced to
// the disk before it is acknowledged.
type NATSOptions struct {
	// SyncInterval is JetStream's sync_interval; "" is "always".
	SyncInterval string
	// Config are lines of nats-server's configuration, beside ours (address, JetStream).
	Config string
	// Dir is where its data directory is made; "" is the system's directory for temporary files.
	Dir string
}

// NATS is one nats-server with JetStream. Its methods are not safe for concurrent use, except those that only tell
// something.
type NATS struct {
	instance instance
	addr     string
	version  string
}

// StartNATS builds the server from its module, once (it is kept in the download cache), and starts it. It takes
// connections when this returns. The working directory must be within this module.
func StartNATS(ctx context.Context, o NATSOptions) (*NATS, error) {
	binary, err := natsBinary(ctx)
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	dir, err := newDirectory(o.Dir, "nats", nil)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir.path, "nats.conf")
	n := &NATS{addr: local(port), instance: &process{
		path:    binary,
		args:    []string{"-c", file},
		logFile: filepath.Join(dir.path, "nats.log"),
		signal:  syscall.SIGKILL,
		dir:     dir,
	}}
	sync := o.SyncInterval
	if sync == "" {
		sync = "always"
	}
	config := fmt.Sprintf("listen: %q\njetstream { store_dir: %q, sync_interval: %s }\n%s\n",
		n.addr, filepath.Join(dir.path, "data"), sync, o.Config)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, joinRemove(err, n.instance)
	}
	if err := n.Start(ctx); err != nil {
		return nil, joinRemove(err, n.instance)
	}
	return n, nil
}

// natsBinary is the server of the version that go.mod names.
func natsBinary(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, natsBuildTimeout)
	defer cancel()
	version, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", natsModule).Output()
	if err != nil {
		return "", fmt.Errorf("find the version of %s, for which go is needed and a directory within this module: %w", natsModule, err)
	}
	dir, err := cached(filepath.Join("nats", strings.TrimSpace(string(version))), func(dir string) error {
		out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "nats-server"), natsModule).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("build %s: %w", natsModule, err)
	}
	return filepath.Join(dir, "nats-server"), nil
}

// Start starts it again, after Stop or Kill, at the same port and with the same data.
func (n *NATS) Start(ctx context.Context) error {
	if err := n.instance.Start(ctx); err != nil {
		return fmt.Errorf("start NATS: %w", err)
	}
	return ready(ctx, "NATS", n.instance, n.ask)
}

// ask reads what a server says first. Its port opens when JetStream has recovered its streams.
func (n *NATS) ask(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", n.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return err
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	text, isInfo := strings.CutPrefix(line, "INFO ")
	var info struct {
		Version   string `json:"version"`
		JetStream bool   `json:"jetstream"`
	}
	if err := json.Unmarshal([]byte(text), &info); err != nil || !isInfo || !info.JetStream {
		return errors.Join(errors.New("not a NATS server with JetStream"), err)
	}
	n.version = info.Version
	return nil
}

// Addr is its host:port.
func (n *NATS) Addr() string { return n.addr }

// URL is its address for clients.
func (n *NATS) URL() string { return "nats://" + n.addr }

// Version is what it says itself.
func (n *NATS) Version() string { return n.version }

// Pid is the server's.
func (n *NATS) Pid() int { return n.instance.Pid() }

// Kill ends it as kill -9 does.
func (n *NATS) Kill() error { return n.end(context.Background(), syscall.SIGKILL) }

// Stop lets it end in good order.
func (n *NATS) Stop(ctx context.Context) error { return n.end(ctx, syscall.SIGTERM) }

func (n *NATS) end(ctx context.Context, sig syscall.Signal) error {
	if err := n.instance.Signal(sig); err != nil {
		return err
	}
	select {
	case <-n.instance.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("NATS at %s is still running: %w", n.addr, context.Cause(ctx))
	}
}

// Pause makes it fall silent with its connections open.
func (n *NATS) Pause() error { return n.instance.Signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (n *NATS) Resume() error { return n.instance.Signal(syscall.SIGCONT) }

// Close ends it at once and removes its data.
func (n *NATS) Close() error { return n.instance.Remove() }
