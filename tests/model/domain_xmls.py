"""Domains as `virsh dumpxml` of libvirt 9.0 gives them."""

from __future__ import annotations

from typing import Final

MAC: Final = "52:54:00:12:34:56"
MAC2: Final = "52:54:00:12:34:57"

RUNNING: Final = """\
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>262144</memory>
  <currentMemory unit='KiB'>262144</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <resource>
    <partition>/machine</partition>
  </resource>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/var/lib/libvirt/images/a &amp; b.qcow2' index='1'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <boot order='2'/>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <interface type='direct'>
      <mac address='52:54:00:12:34:56'/>
      <source dev='eth0' mode='bridge'/>
      <target dev='macvtap0'/>
      <model type='virtio'/>
      <driver name='vhost' queues='4'/>
      <link state='up'/>
      <boot order='1'/>
      <alias name='net0'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <interface type='direct' trustGuestRxFilters='yes'>
      <mac address='52:54:00:12:34:57'/>
      <source network='macvtaps' portgroup='fast' portid='c1e1f6c8-4b0e-4c57-8b0c-7d1b9f0f2a11' dev='eth1' mode='passthrough'/>
      <target dev='macvtap1'/>
      <model type='e1000'/>
      <alias name='ua-lan'/>
      <rom bar='off'/>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x01' function='0x0'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:12:34:58'/>
      <source bridge='br0'/>
      <target dev='vnet0'/>
      <model type='virtio'/>
      <alias name='net2'/>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </interface>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'>
    <label>libvirt-4dea22b3-1d52-d8f3-2516-782e98ab3fa0</label>
  </seclabel>
  <qemu:commandline>
    <qemu:arg value='-no-hpet'/>
  </qemu:commandline>
</domain>
"""  # noqa: E501

MIXED: Final = """\
<domain type='kvm'>
  <name>db-1</name>
  <uuid>11111111-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <title>The database</title>
  <memory unit='KiB'>262144</memory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/>
      <source network='default'/>
      <model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <interface type='direct' trustGuestRxFilters='yes'>
      <mac address='52:54:00:00:00:02'/>
      <source dev='eth0'/>
      <bandwidth>
        <inbound average='1000' peak='5000' burst='1024'/>
        <outbound average='128' peak='256' burst='256'/>
      </bandwidth>
      <target dev='lan0'/>
      <model type='virtio'/>
      <driver name='vhost' txmode='iothread' ioeventfd='on' event_idx='off' queues='5' rx_queue_size='256'>
        <host csum='off' gso='off'/>
        <guest csum='off'/>
      </driver>
      <link state='down'/>
      <boot order='1'/>
      <alias name='ua-front'/>
      <rom bar='on' file='/etc/fake/boot.bin'/>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>
    </interface>
    <interface type='direct'>
      <mac address='52:54:00:00:00:03'/>
      <source dev='eth1' mode='vepa'/>
      <virtualport type='802.1Qbg'>
        <parameters managerid='11' typeid='1193047' typeidversion='2' instanceid='09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f'/>
      </virtualport>
      <model type='e1000e'/>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </interface>
    <interface type='direct'>
      <mac address='52:54:00:00:00:04'/>
      <source dev='enp3s0f0v1' mode='passthrough'/>
      <vlan>
        <tag id='42'/>
      </vlan>
      <bandwidth>
        <outbound average='128'/>
      </bandwidth>
      <model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </interface>
    <interface type='hostdev' managed='yes'>
      <mac address='52:54:00:00:00:05'/>
      <source>
        <address type='pci' domain='0x0000' bus='0x00' slot='0x07' function='0x0'/>
      </source>
      <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>
    </interface>
  </devices>
</domain>
"""  # noqa: E501


def domain_xml(*interfaces: str, metadata: str = "", name: str = "web") -> str:
    """A small domain with these interfaces and this content of <metadata>."""
    inner = f"  <metadata>\n    {metadata}\n  </metadata>\n" if metadata else ""
    devices = "".join(f"    {interface}\n" for interface in interfaces)
    return (
        f"<domain type='qemu'>\n  <name>{name}</name>\n  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>\n"
        f"{inner}  <memory unit='KiB'>262144</memory>\n  <os>\n    <type arch='x86_64'>hvm</type>\n  </os>\n"
        f"  <devices>\n{devices}  </devices>\n</domain>\n"
    )


def nics_xml(*nics: str, **attributes: str) -> str:
    """evertap's element in <metadata>."""
    given = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f'<evertap:nics xmlns:evertap="urn:evertap:1"{given}>{"".join(nics)}</evertap:nics>'


def nic_xml(mac: str = MAC, uplinks: str = '<evertap:uplink name="eth0"/>', **attributes: str) -> str:
    """A NIC in it."""
    given = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f'<evertap:nic mac="{mac}"{given}>{uplinks}</evertap:nic>'


def tap_xml(mac: str = MAC, name: str = "web0", inner: str = "<model type='virtio'/>") -> str:
    """An interface that is on a tap of evertap's."""
    return (
        f"<interface type='ethernet'><mac address='{mac}'/><target dev='{name}' managed='no'/>"
        f"{inner}</interface>"
    )
