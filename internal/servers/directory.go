package servers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// directory is a temporary directory that is removed with its server. A process that is killed cannot remove its own,
// so whoever makes a directory removes the abandoned ones first. The kernel says which these are: each directory has
// a lock file, and the lock goes with the process that held it.
type directory struct {
	path string
	lock *os.File
}

const lockName = "outbox-cdc.lock"

// newDirectory makes one within parent, by default the system's directory for temporary files.
func newDirectory(parent, kind string, owner *syscall.Credential) (*directory, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	removeAbandoned(parent)
	path, err := os.MkdirTemp(parent, "outbox-cdc-"+kind+"-")
	if err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(path, lockName), syscall.LOCK_EX)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	d := &directory{path: path, lock: lock}
	if owner != nil {
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			return nil, errors.Join(err, d.remove())
		}
	}
	return d, nil
}

// TempDir makes a directory for whatever else belongs to the servers of this process, and that nobody else may read.
// The function removes it. Where that is not called, it is removed once this process has ended, as those of servers
// are: by the next that makes one.
func TempDir(kind string) (path string, remove func() error, err error) {
	d, err := newDirectory("", kind, nil)
	if err != nil {
		return "", nil, err
	}
	return d.path, d.remove, nil
}

func (d *directory) remove() error {
	defer d.lock.Close()
	return os.RemoveAll(d.path)
}

// removeAbandoned does what it can; what it cannot remove belongs to somebody else.
func removeAbandoned(parent string) {
	locks, _ := filepath.Glob(filepath.Join(parent, "outbox-cdc-*", lockName)) // the pattern is well-formed
	for _, path := range locks {
		// A young directory may be one whose maker is about to lock it.
		if info, err := os.Lstat(path); err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		if lock, err := lockFile(path, syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			_ = (&directory{path: filepath.Dir(path), lock: lock}).remove()
		}
	}
}

// lockFile opens and locks a file; closing it unlocks it. Children do not inherit it.
func lockFile(path string, how int) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), how); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// cached returns the directory name of the download cache, which fill makes when it is not there yet. Of several
// processes one fills it and the others wait. What fill leaves half done, there or beside it, is never seen under that
// name, and goes when it is next filled.
func cached(name string, fill func(dir string) error) (string, error) {
	root, err := cacheRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	lock, err := lockFile(dir+".lock", syscall.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}

	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	content := filepath.Join(partial, "content")
	if err := os.MkdirAll(content, 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(partial)
	if err := fill(content); err != nil {
		return "", err
	}
	return dir, os.Rename(content, dir)
}

// cacheRoot is the user's cache directory. Of root it is the system's: PostgreSQL runs as another user, who has to
// read it and must not enter root's home.
func cacheRoot() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/outbox-cdc", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the download cache: %w", err)
	}
	return filepath.Join(dir, "outbox-cdc"), nil
}
