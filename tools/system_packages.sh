#!/bin/sh
# Installs Debian packages where they are missing and can be installed; never fails the build.
#   renderer: OpenGL without a screen; without it pictures come from the slower built-in ray caster
#   browser:  headless Chromium, for the tests that open the report
#   prometheus: for the test that asks it every query of the dashboard
what=$1 python=$2
case $what in
renderer) packages="libegl1 libgl1"; present() { MUJOCO_GL=egl "$python" -c "import mujoco; mujoco.GLContext(8, 8)" 2>/dev/null; } ;;
browser) packages="chromium"; present() { command -v chromium >/dev/null || command -v google-chrome >/dev/null; } ;;
prometheus) packages="prometheus"; present() { command -v prometheus >/dev/null && command -v promtool >/dev/null; } ;;
esac
present && exit 0
if [ "$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else
  echo "note: $packages not found and not root, so not installed (optional: apt-get install $packages)"; exit 0
fi
command -v apt-get >/dev/null || { echo "note: no apt-get here; install $packages by hand (optional)"; exit 0; }
echo "installing $packages"
{ $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages; } >/dev/null 2>&1 \
  || echo "note: $packages could not be installed (optional)"
exit 0
