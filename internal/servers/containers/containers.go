// Package containers runs a server in a container, by testcontainers-go. It is a package of its own, and imported under
// the build tag "containers" only, so that no program that is shipped carries a Docker client.
package containers

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// Spec is what runs in a container.
type Spec struct {
	Image  string
	User   string            // "" is the image's
	Script string            // for sh; it ends with an exec, so that signals reach the server
	Env    map[string]string // of the script
	Ports  []int             // the same inside and at 127.0.0.1: servers tell clients their port, and keep it when restarted
}

// Container keeps its files when it ends, and can be started again.
type Container struct {
	container testcontainers.Container
	docker    *testcontainers.DockerClient
	done      chan struct{}
}

// New makes a container, not yet started.
func New(ctx context.Context, s Spec) (*Container, error) {
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to Docker: %w", err)
	}
	exposed := make([]string, len(s.Ports))
	bindings := network.PortMap{}
	for i, port := range s.Ports {
		exposed[i] = fmt.Sprintf("%d/tcp", port)
		inside, err := network.ParsePort(exposed[i])
		if err != nil {
			return nil, err
		}
		bindings[inside] = []network.PortBinding{{HostIP: netip.AddrFrom4([4]byte{127, 0, 0, 1}), HostPort: strconv.Itoa(port)}}
	}
	c, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{
		ContainerRequest: testcontainers.ContainerRequest{
			Image:              s.Image,
			Entrypoint:         []string{"sh", "-c", s.Script},
			Env:                s.Env,
			ExposedPorts:       exposed,
			ConfigModifier:     func(c *container.Config) { c.User = s.User },
			HostConfigModifier: func(c *container.HostConfig) { c.PortBindings = bindings },
		},
		Logger: log.New(io.Discard, "", 0), // it tells of every step
	})
	if err != nil {
		return nil, fmt.Errorf("make a container of %s: %w", s.Image, err)
	}
	return &Container{container: c, docker: docker}, nil
}

// Start runs the script, again after it has ended.
func (c *Container) Start(ctx context.Context) error {
	if err := c.container.Start(ctx); err != nil {
		return err
	}
	c.done = make(chan struct{})
	ended := c.docker.ContainerWait(context.WithoutCancel(ctx), c.container.GetContainerID(), client.ContainerWaitOptions{})
	go func(done chan struct{}) {
		select {
		case <-ended.Result:
		case <-ended.Error: //nolint:errcheck // the container is gone, or Docker is
		}
		close(done)
	}(c.done)
	return nil
}

// Signal reaches the server. It is os.ErrProcessDone when that has ended.
func (c *Container) Signal(sig syscall.Signal) error {
	_, err := c.docker.ContainerKill(context.Background(), c.container.GetContainerID(),
		client.ContainerKillOptions{Signal: strconv.Itoa(int(sig))})
	if errdefs.IsConflict(err) {
		return os.ErrProcessDone
	}
	return err
}

// Done is closed when what Start started has ended.
func (c *Container) Done() <-chan struct{} { return c.done }

// Pid is 0: what runs is no process of this machine's.
func (c *Container) Pid() int { return 0 }

// Log is the end of what the server printed.
func (c *Container) Log() string {
	logs, err := c.container.Logs(context.Background())
	if err != nil {
		return err.Error()
	}
	defer logs.Close()
	data, err := io.ReadAll(logs)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// Remove ends it at once, and removes its files.
func (c *Container) Remove() error {
	return c.container.Terminate(context.Background(), testcontainers.StopTimeout(0))
}
