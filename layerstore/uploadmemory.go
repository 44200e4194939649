package layerstore

import (
	"encoding/json"
	"io"
	"net/url"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// uploadMemory is a file that says where a registry keeps what it has of a blob, so that another process goes on with an upload
// whose process was killed. The file is only a hint: the registry is asked before anything is believed, and checks the digest in
// the end. All methods work on nil, and then remember nothing.
type uploadMemory struct {
	path   string
	lock   *fileLock
	record uploadRecord
}

// uploadRecord is what is in it.
type uploadRecord struct {
	Version    int           `json:"version"`
	Repository string        `json:"repository"` // its URL
	Digest     digest.Digest `json:"digest"`
	Location   string        `json:"location"` // may be all that is needed to write there: the file is for the store's owner
}

// rememberUpload locks the memory of an upload. It is nil if another process has it, which sends the same, or it can't be made:
// an upload works without.
func (s *Store) rememberUpload(r *repository, d digest.Digest) *uploadMemory {
	path := s.path(downloadsDir, uploadName(r, d))
	l, err := lockFile(path, true, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return nil
	}
	if here, _, err := l.stillAt(path); err != nil || !here {
		l.close()
		return nil
	}
	return &uploadMemory{path, l, uploadRecord{Version: recordVersion, Repository: r.base.String(), Digest: d}}
}

// forgetUpload deletes the memory of an upload that has ended, unless another process is using it.
func (s *Store) forgetUpload(r *repository, d digest.Digest) {
	if _, err := os.Lstat(s.path(downloadsDir, uploadName(r, d))); err != nil {
		return // as nearly always
	}
	m := s.rememberUpload(r, d)
	m.forget()
	m.close()
}

// recall returns where the session is; nil if there is none.
func (m *uploadMemory) recall() *url.URL {
	if m == nil {
		return nil
	}
	const most = 64 << 10
	raw, err := io.ReadAll(io.NewSectionReader(m.lock.f, 0, most))
	var r uploadRecord
	if err != nil || json.Unmarshal(raw, &r) != nil || r.Location == "" {
		return nil // new, or torn
	}
	location, err := url.Parse(r.Location)
	if r.Location = ""; err != nil || r != m.record {
		return nil // of another version, or not of this upload
	}
	m.record.Location = location.String()
	return location
}

// keep writes down where the session is now. It isn't flushed: after a power loss the blob is sent from its beginning.
func (m *uploadMemory) keep(location *url.URL) {
	if m == nil {
		return
	}
	m.record.Location = location.String()
	raw, err := json.Marshal(m.record)
	if err == nil {
		err = m.lock.f.Truncate(0)
	}
	if err == nil {
		_, err = m.lock.f.WriteAt(raw, 0)
	}
	if err != nil {
		m.forget() // half of it must not stay
	}
}

// forget deletes the file: the blob is there, or its session is gone.
func (m *uploadMemory) forget() {
	if m != nil {
		m.record.Location = ""
		os.Remove(m.path)
	}
}

// close lets other processes have it. What says nothing is not left.
func (m *uploadMemory) close() {
	if m == nil {
		return
	}
	if m.record.Location == "" {
		os.Remove(m.path)
	}
	m.lock.close()
}
