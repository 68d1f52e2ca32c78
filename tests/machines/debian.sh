# shellcheck shell=sh
# Sourced by its neighbours: Debian packages in folders of their own, of another release or architecture than this
# machine has, without installing any. They come from the mirror that this machine uses already.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/aiotuntap

# Usage: use_debian RELEASE ARCHITECTURE
# From here on apt knows the packages of these alone, and believes that none is installed.
use_debian() {
    apt=$cache/apt-$1-$2
    # shellcheck disable=SC2016 # apt's own placeholder
    mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m 1 '/debian/*$' | sed 's|/debian/*$||')
    if [ -z "$mirror" ]; then
        echo 'apt has no mirror of Debian here, to get the packages of another machine from' >&2
        return 1
    fi
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    : >"$apt/status"
    key='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    printf 'deb %s %s main\n' "$key" "$mirror/debian $1" "$key" "$mirror/debian-security $1-security" >"$apt/sources"
    cat >"$apt/conf" <<EOF
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Etc::SourceList "$apt/sources";
Dir::Etc::SourceParts "-";
APT::Architecture "$2";
APT::Architectures { "$2"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
EOF
    export APT_CONFIG="$apt/conf"
    apt-get -qq update
}

# Usage: unpack FOLDER PACKAGE …
unpack() {
    folder=$1
    shift
    (
        mkdir -p "$folder/packages"
        cd "$folder/packages" || exit
        apt-get -qq download "$@"
        for package in *.deb; do
            dpkg -x "$package" "$folder"
        done
        rm -r "$folder/packages"
    )
}

# Usage: unpack_with_dependencies FOLDER PACKAGE …
unpack_with_dependencies() {
    folder=$1
    shift
    apt-get -qq install --download-only --no-install-recommends "$@" >/dev/null
    mkdir -p "$folder"
    for package in "$apt"/archives/*.deb; do
        dpkg -x "$package" "$folder"
    done
    rm "$apt"/archives/*.deb
}
