package layerstore

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// reservedName is the image that is this machine's own root; it is in no store.
const reservedName = "host"

// parseName reads an image reference as Docker does: "debian" is index.docker.io/library/debian:latest.
func parseName(ref string, o ...name.Option) (name.Reference, error) {
	r, err := name.ParseReference(ref, append(o, name.WeakValidation)...)
	if err != nil {
		return nil, fmt.Errorf("%q is no image reference, such as debian:12 or registry.example/team/app@sha256:…: %w", clip(ref), err)
	}
	if familiarRepo(r.Context()) == reservedName {
		return nil, ErrReserved
	}
	return r, nil
}

// familiarRepo is how people write a repository: without what is the default.
func familiarRepo(r name.Repository) string {
	full := r.Name()
	if short, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
		return strings.TrimPrefix(short, "library/")
	}
	return full
}

// familiarName is how an image reference is listed.
func familiarName(r name.Reference) string {
	switch r := r.(type) {
	case name.Tag:
		return familiarRepo(r.Context()) + ":" + r.TagStr()
	case name.Digest:
		return familiarRepo(r.Context()) + "@" + r.DigestStr()
	}
	return r.Name()
}

// refFile is the name of the file that a reference is kept in. Escaping leaves no slash and no leading dot.
func refFile(r name.Reference) string {
	// Above this, a file name might not fit. The name itself is in the file.
	const most = 200
	esc := url.PathEscape(r.Name())
	if len(esc) <= most {
		return esc
	}
	sum := sha256.Sum256([]byte(r.Name()))
	return "long-" + hex.EncodeToString(sum[:])
}

// isIDPrefix reports whether ref can be the start of an image ID, and returns its hexadecimal digits.
func isIDPrefix(ref string) (string, bool) {
	digits := strings.TrimPrefix(ref, "sha256:")
	if digits == "" || len(digits) > sha256.Size*2 {
		return "", false
	}
	for _, c := range digits {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", false
		}
	}
	return digits, true
}

// CheckName returns an error unless an image can have this name: ErrReserved for "host".
func CheckName(ref string) error {
	r, err := parseName(ref)
	if err != nil {
		return err
	}
	if _, ok := r.(name.Tag); !ok {
		return errors.New("an image is named by name[:tag], not by digest")
	}
	return nil
}
