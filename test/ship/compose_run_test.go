//go:build linux

package ship

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// insideVariable tells the test that it runs in namespaces of its own.
const insideVariable = "OUTBOX_SHIP_INSIDE"

// TestComposeRuns runs what the compose file runs as processes of this machine: the same commands, variables and files, and the same names and
// ports. Only the images are not used, and there is no Grafana. Its namespaces of network and mounts are the test's own, so that postgres:5432
// and the others are addresses of its loopback device, and nobody else sees them.
func TestComposeRuns(t *testing.T) {
	needsLong(t)
	if os.Getenv(insideVariable) == "" {
		if os.Geteuid() != 0 {
			t.Skip("only root may make namespaces")
		}
		binary, err := process.Build(t.Context(), root, process.Product, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		// What has to be downloaded is downloaded here: inside there is no network.
		k, err := servers.StartKafka(t.Context(), servers.KafkaOptions{Own: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
			self, "-test.run", "^TestComposeRuns$", "-test.v", "-test.timeout", "10m", "-ship")
		c.Env = append(os.Environ(), insideVariable+"="+binary)
		out, err := c.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	runCompose(t, &composeWorld{t: t, services: readCompose(t), binary: os.Getenv(insideVariable), dir: t.TempDir()})
}

// composeWorld are the services of the compose file, as processes.
type composeWorld struct {
	t         *testing.T
	services  map[string]composeService
	binary    string // the connector
	dir       string
	addresses map[string]string // of the services, by their names
}

// runCompose starts the services in the order that depends_on makes, and looks at what arrives where.
func runCompose(t *testing.T, w *composeWorld) {
	w.nameServices()
	w.startPostgres()
	w.startKafka()
	w.startRedis()
	w.run("init", w.binary, nil)
	began := time.Now()
	for _, name := range connectors(w.services) {
		// All of them are in one network namespace here, so each listens on the address of its name.
		w.start(name, w.binary, map[string]string{"OUTBOX_LISTEN": w.addresses[name] + ":9640"})
	}
	w.start("shop", "", nil)
	w.run("prometheus", "promtool", nil, "check", "config", w.path("prometheus", "/etc/prometheus/prometheus.yml"))
	w.start("prometheus", "", nil)

	w.eventually(time.Minute, "the lag", func() error {
		return w.expect(`count(pyairtable_outbox_slot_lag_seconds{job="shop-outbox"}) >= 1`)
	})
	t.Logf("Prometheus knows the lag after %s", time.Since(began).Round(time.Second))
	w.eventually(time.Minute, "both instances", func() error {
		return errors.Join(w.expect(`sum(up{job="shop-outbox"}) == 2`), w.expect(`sum(pyairtable_outbox_leader) == 1`))
	})
	w.eventually(time.Minute, "deliveries to both sinks", func() error {
		return w.expect(`count(sum by (sink) (rate(pyairtable_outbox_events_processed_total{status="delivered"}[30s])) > 1) == 2`)
	})
	w.arrives()
	w.rulesAreQuiet()
}

// nameServices gives each service an address that its name leads to, for all processes in this mount namespace.
func (w *composeWorld) nameServices() {
	w.run("", "ip", nil, "link", "set", "lo", "up")
	hosts := "127.0.0.1 localhost\n"
	w.addresses = map[string]string{}
	for i, name := range slices.Sorted(maps.Keys(w.services)) {
		w.addresses[name] = fmt.Sprintf("127.0.1.%d", i+1)
		hosts += w.addresses[name] + " " + name + "\n"
	}
	file := filepath.Join(w.dir, "hosts")
	if err := os.WriteFile(file, []byte(hosts), 0o644); err != nil { // the servers run as another user
		w.t.Fatal(err)
	}
	w.run("", "mount", nil, "--bind", file, "/etc/hosts")
}

// startPostgres starts a server with the settings and the password of the service.
func (w *composeWorld) startPostgres() {
	s := w.services["postgres"]
	settings := servers.NoSync()
	for _, arg := range s.Command {
		if name, value, ok := strings.Cut(arg, "="); ok {
			settings[name] = value
		}
	}
	p, err := servers.StartPostgres(w.t.Context(), servers.PostgresOptions{Settings: settings})
	if err != nil {
		w.t.Fatal(err)
	}
	w.closes(p)
	conn, err := pgx.Connect(w.t.Context(), p.DSN("postgres"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(w.t.Context())
	for _, sql := range []string{"create database " + s.Environment["POSTGRES_DB"], "alter user postgres password '" + s.Environment["POSTGRES_PASSWORD"] + "'"} {
		if _, err := conn.Exec(w.t.Context(), sql); err != nil {
			w.t.Fatal(err)
		}
	}
	w.forward("postgres", 5432, p.Addr())
	w.t.Setenv("PATH", p.BinDir()+":"+os.Getenv("PATH")) // psql
}

// startKafka starts a broker that calls itself as the service does, and makes the topic of the service topics.
func (w *composeWorld) startKafka() {
	s := w.services["kafka"]
	// The controller's part is the servers' own.
	k, err := servers.StartKafka(w.t.Context(), servers.KafkaOptions{Own: true, Settings: map[string]string{
		"auto.create.topics.enable": s.Environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"],
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.closes(k)
	args := w.services["topics"].Command
	value := func(flag string) string { return args[slices.Index(args, flag)+1] }
	partitions, err := strconv.ParseInt(value("--partitions"), 10, 32)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := k.CreateTopic(w.t.Context(), value("--topic"), int32(partitions), nil); err != nil {
		w.t.Fatal(err)
	}
	w.forward("kafka", 9092, k.Brokers()[0])
}

func (w *composeWorld) startRedis() {
	r, err := servers.StartRedis(w.t.Context(), servers.RedisOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.closes(r)
	w.forward("redis", 6379, r.Addr())
}

func (w *composeWorld) closes(c io.Closer) {
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
}

// forward takes connections at the port of a service and hands them on.
func (w *composeWorld) forward(service string, port int, target string) {
	listener, err := (&net.ListenConfig{}).Listen(w.t.Context(), "tcp", fmt.Sprintf("%s:%d", w.addresses[service], port))
	if err != nil {
		w.t.Fatal(err)
	}
	w.closes(listener)
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := (&net.Dialer{}).DialContext(w.t.Context(), "tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			go func() { io.Copy(server, client); server.Close() }() //nolint:errcheck // the other side sees it
			go func() { io.Copy(client, server); client.Close() }() //nolint:errcheck // the other side sees it
		}
	}()
}

// path is where a path of a service's container is on this machine: in the repository if it is mounted, else below the test's directory.
// The file of a directory of Prometheus stands beside those that it names, so such a directory is laid out with links.
func (w *composeWorld) path(service, container string) string {
	top := filepath.Join(w.dir, service)
	for target, source := range w.services[service].mounts() {
		link := filepath.Join(top, target)
		if _, err := os.Lstat(link); err == nil {
			continue
		}
		absolute, err := filepath.Abs(filepath.Join(root, source))
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(absolute, link)) // the servers run as another user
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return filepath.Join(top, container)
}

// command is what a service runs: program, or the first word of its command, with the paths of its container.
func (w *composeWorld) command(service, program string, env map[string]string, args ...string) *exec.Cmd {
	s := w.services[service]
	if len(args) == 0 {
		args = slices.Clone(s.Command)
		switch {
		case program != "":
		case strings.HasPrefix(args[0], "-"): // the image's entry point is the service's name
			program = service
		default:
			program, args = args[0], args[1:]
		}
		for i, arg := range args {
			flag, value, ok := strings.Cut(arg, "=")
			switch {
			case strings.HasPrefix(arg, "/"):
				args[i] = w.path(service, arg)
			case ok && strings.HasPrefix(value, "/") && value != "/dev/null":
				args[i] = flag + "=" + w.path(service, value)
			}
		}
	}
	c := exec.CommandContext(w.t.Context(), program, args...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 30 * time.Second
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir}
	for _, more := range []map[string]string{s.Environment, env} {
		for k, v := range more {
			c.Env = append(c.Env, k+"="+v)
		}
	}
	return c
}

// run runs a program to its end, which has to be a good one.
func (w *composeWorld) run(service, program string, env map[string]string, args ...string) {
	w.t.Helper()
	c := w.command(service, program, env, args...)
	out, err := c.CombinedOutput()
	w.t.Logf("%s\n%s", c, out)
	if err != nil {
		w.t.Fatal(err)
	}
}

// start starts a program that runs until the test ends.
func (w *composeWorld) start(service, program string, env map[string]string) {
	w.t.Helper()
	c := w.command(service, program, env)
	log, err := os.Create(filepath.Join(w.dir, service+".log"))
	if err != nil {
		w.t.Fatal(err)
	}
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	w.t.Cleanup(func() { // the context of the test has ended, and so does the program
		err := <-ended
		log.Close()
		text, readErr := os.ReadFile(log.Name())
		if w.t.Failed() || readErr != nil {
			w.t.Logf("%s: %v\n%s", c, err, text)
		}
	})
}

func (w *composeWorld) eventually(patience time.Duration, what string, check func() error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return
		}
		if process.Pause(ctx, 500*time.Millisecond) != nil {
			w.t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
	}
}

// ask asks the Prometheus that the file of the service describes.
func (w *composeWorld) ask(path string, to any) error {
	r, err := http.Get("http://prometheus:9090/api/v1/" + path)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	return json.NewDecoder(r.Body).Decode(&struct{ Data any }{to})
}

// expect is nil if an expression has a result.
func (w *composeWorld) expect(expr string) error {
	var answer struct{ Result []any }
	if err := w.ask("query?query="+url.QueryEscape(expr), &answer); err != nil {
		return err
	}
	if len(answer.Result) == 0 {
		return fmt.Errorf("not yet %s", expr)
	}
	return nil
}

// arrives looks at what the consumers get.
func (w *composeWorld) arrives() {
	consumer, err := kgo.NewClient(kgo.SeedBrokers("kafka:9092"), kgo.ConsumeTopics("outbox.event.order"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer consumer.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	fetches := consumer.PollFetches(ctx)
	if err := fetches.Err(); err != nil {
		w.t.Fatal(err)
	}
	var order struct {
		ID       int
		Customer string
		Amount   float64
	}
	if err := json.Unmarshal(fetches.Records()[0].Value, &order); err != nil || order.ID == 0 || order.Customer == "" || order.Amount < 5 {
		w.t.Errorf("an event is %+v: %v", order, err)
	}
	r := redis.NewClient(&redis.Options{Addr: "redis:6379"})
	defer r.Close()
	if n, err := r.XLen(w.t.Context(), "outbox.event.order").Result(); err != nil || n == 0 {
		w.t.Errorf("the stream has %d entries: %v", n, err)
	}
}

// rulesAreQuiet: each rule can be evaluated, and no alert fires.
func (w *composeWorld) rulesAreQuiet() {
	var answer struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError, State string }
		}
	}
	w.eventually(time.Minute, "all rules evaluated", func() error {
		if err := w.ask("rules", &answer); err != nil {
			return err
		}
		n := 0
		for _, g := range answer.Groups {
			for _, r := range g.Rules {
				n++
				if r.Health != "ok" {
					return fmt.Errorf("%s is %s: %s", r.Name, r.Health, r.LastError)
				}
				if r.State == "firing" {
					w.t.Errorf("%s fires", r.Name)
				}
			}
		}
		if n < 20 {
			return fmt.Errorf("there are %d rules", n)
		}
		return nil
	})
}
