package layerstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	clitypes "github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// ErrNotLoggedIn says that there are no credentials to forget.
var ErrNotLoggedIn = errors.New("not logged in")

// Login asks a registry whether it accepts the credentials, and keeps them where Docker does: in config.json, or with the
// credential helper that it names. Pull and Push find them there. The server is a host with or without a port; empty for
// Docker Hub. It returns the file that Docker's configuration is in.
func Login(ctx context.Context, server, user, password string, insecure bool) (file string, err error) {
	registry, key, err := loginServer(server, insecure)
	if err != nil {
		return "", err
	}
	if user == "" || password == "" {
		return "", fmt.Errorf("logging in to %s: a user name and a password are needed", registry.RegistryStr())
	}
	if err := checkCredentials(ctx, registry, user, password, insecure); err != nil {
		return "", fmt.Errorf("logging in to %s: %w", registry.RegistryStr(), err)
	}
	c, err := dockerConfig()
	if err != nil {
		return "", err
	}
	err = c.GetCredentialsStore(key).Store(clitypes.AuthConfig{ServerAddress: key, Username: user, Password: password})
	if err != nil {
		return "", fmt.Errorf("keeping the credentials for %s: %w", registry.RegistryStr(), err)
	}
	return c.Filename, nil
}

// Logout forgets the credentials for a registry; ErrNotLoggedIn if there are none.
func Logout(server string) error {
	registry, key, err := loginServer(server, false)
	if err != nil {
		return err
	}
	c, err := dockerConfig()
	if err != nil {
		return err
	}
	store := c.GetCredentialsStore(key)
	if have, err := store.Get(key); err != nil || have.Username == "" && have.IdentityToken == "" {
		return fmt.Errorf("logging out of %s: %w", registry.RegistryStr(), errors.Join(ErrNotLoggedIn, err))
	}
	if err := store.Erase(key); err != nil {
		return fmt.Errorf("logging out of %s: %w", registry.RegistryStr(), err)
	}
	return nil
}

// dockerConfig reads Docker's configuration; an empty one if there is none.
func dockerConfig() (*configfile.ConfigFile, error) {
	c, err := config.Load(os.Getenv("DOCKER_CONFIG"))
	if err != nil {
		return nil, fmt.Errorf("reading Docker's configuration: %w", err)
	}
	return c, nil
}

// loginServer returns a registry and the key that Docker keeps its credentials under.
func loginServer(server string, insecure bool) (registry name.Registry, key string, err error) {
	host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	if host == "" {
		host = name.DefaultRegistry
	}
	var options []name.Option
	if insecure || isLoopback(host) {
		options = append(options, name.Insecure)
	}
	if registry, err = name.NewRegistry(host, options...); err != nil {
		return registry, "", fmt.Errorf("%q is no registry, such as registry.example:5000: %w", clip(server), err)
	}
	key = registry.RegistryStr()
	if key == name.DefaultRegistry {
		key = authn.DefaultAuthKey
	}
	return registry, key, nil
}

// checkCredentials asks a registry for what anyone who is known may have.
func checkCredentials(ctx context.Context, registry name.Registry, user, password string, insecure bool) error {
	auth := &authn.Basic{Username: user, Password: password}
	rt, err := transport.NewWithContext(ctx, registry, auth, &guard{plainTransport(insecure), insecure}, nil)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, registry.Scheme()+"://"+registry.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: rt, CheckRedirect: checkRedirect}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized {
		return errors.New("the registry doesn't accept this user name and password")
	}
	return transport.CheckError(resp, http.StatusOK)
}
